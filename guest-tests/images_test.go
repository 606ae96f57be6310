package guesttests

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vdev/guest-tests/internal/netbsd"
)

// bootSector assembles a boot sector that reads the disk's sector 1 through the firmware (int 13h,
// function 42h), writes the text found there to the first serial port, has the firmware write the
// same sector to sector 2 (function 43h), says so on the port, and stops.
func bootSector() []byte {
	code := []byte{
		0xfa,       // cli
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x8e, 0xd0, // mov ss, ax
		0xbc, 0x00, 0x7c, // mov sp, 7c00h
		0xfb,             // sti
		0x88, 0x16, 0, 0, // mov [drive], dl        (address filled in)
		0xbe, 0, 0, // mov si, packet
		0xb4, 0x42, // mov ah, 42h
		0xcd, 0x13, // int 13h
		0x72, 0, // jc failed
		0xbe, 0x00, 0x7e, // mov si, 7e00h
		0xe8, 0, 0, // call print
		0xc6, 0x06, 0, 0, 0x02, // mov byte [sector], 2
		0xbe, 0, 0, // mov si, packet
		0x8a, 0x16, 0, 0, // mov dl, [drive]
		0xb8, 0x00, 0x43, // mov ax, 4300h
		0xcd, 0x13, // int 13h
		0x72, 0, // jc failed
		0xbe, 0, 0, // mov si, good
		0xe8, 0, 0, // call print
		0xf4,       // hlt
		0xeb, 0xfd, // jmp $-1
	}
	failed := len(code)
	code = append(code,
		0xbe, 0, 0, // mov si, bad
		0xe8, 0, 0, // call print
		0xf4,       // hlt
		0xeb, 0xfd, // jmp $-1
	)
	printText := len(code)
	code = append(code,
		0xac,       // lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x11, // jz done
		0x88, 0xc4, // mov ah, al
		0xba, 0xfd, 0x03, // mov dx, 3fdh
		0xec,       // in al, dx
		0xa8, 0x20, // test al, 20h: the transmitter is empty
		0x74, 0xfb, // jz $-3
		0x88, 0xe0, // mov al, ah
		0xb2, 0xf8, // mov dl, f8h
		0xee,       // out dx, al
		0xeb, 0xea, // jmp print
		0xc3, // done: ret
	)
	const base = 0x7c00
	drive := len(code)
	code = append(code, 0)
	packet := len(code)
	// one sector, 1, to 0:7e00h
	code = append(code, 0x10, 0, 1, 0, 0x00, 0x7e, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0)
	good := len(code)
	code = append(code, "sector 2 written\r\n\x00"...)
	bad := len(code)
	code = append(code, "the disk does not answer\r\n\x00"...)

	put := func(at, value int) { code[at], code[at+1] = byte(value), byte(value>>8) }
	short := func(at, target int) { code[at] = byte(target - (at + 1)) }
	near := func(at, target int) { put(at, target-(at+2)) }
	put(13, base+drive)
	put(16, base+packet)
	short(23, failed)
	near(28, printText)
	put(32, base+packet+8)
	put(36, base+packet)
	put(40, base+drive)
	short(48, failed)
	put(50, base+good)
	near(53, printText)
	put(failed+1, base+bad)
	near(failed+4, printText)

	sector := make([]byte, 512)
	copy(sector, code)
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

func TestTheBootSectorFitsAndIsMarked(t *testing.T) {
	s := bootSector()
	if len(s) != 512 || s[510] != 0x55 || s[511] != 0xaa {
		t.Errorf("%d bytes, ends % x", len(s), s[510:])
	}
}

// writeBootSector is "boot-sector FILE TEXT...": an image of 1 MiB that boots and says the text.
func writeBootSector(w *world, args []string) (string, error) {
	if len(args) < 2 {
		return "", errors.New("usage: boot-sector FILE TEXT...")
	}
	image := make([]byte, 1<<20)
	copy(image, bootSector())
	copy(image[512:1024], strings.Join(args[1:], " ")+"\r\n")
	return "", os.WriteFile(filepath.Join(w.dir, args[0]), image, 0o644)
}

// netbsdRoot is "netbsd-root FILE": a root file system for NetBSD with the agent as init.
func netbsdRoot(w *world, args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("usage: netbsd-root FILE")
	}
	agent, err := built.netbsdAgent()
	if err != nil {
		return "", err
	}
	return "", netbsd.MakeRoot(filepath.Join(w.dir, args[0]), agent, false)
}
