package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
)

// openDirect is nothing: NetBSD's raw devices (/dev/rld0d) have no cache to go round.
const openDirect = 0

// From sys/dkio.h, sys/drvctlio.h, sys/reboot.h and ufs/ufs/ufsmount.h.
const (
	ioctlDIOCCACHESYNC    = 0x80046476 // _IOW('d', 118, int)
	ioctlDIOCGMEDIASIZE   = 0x40086484 // _IOR('d', 132, off_t)
	ioctlDIOCGSECTORSIZE  = 0x40046485 // _IOR('d', 133, u_int)
	ioctlDRVDETACHDEV     = 0x8010447b // _IOW('D', 123, struct devdetachargs)
	ioctlDRVRESCANBUS     = 0x8030447c // _IOW('D', 124, struct devrescanargs)
	mountUpdate           = 0x00010000 // MNT_UPDATE
	rebootHalt            = 0x00000008 // RB_HALT
	rebootPowerDown       = 0x00000808 // RB_POWERDOWN | RB_HALT
	rebootAuto            = 0x00000000 // RB_AUTOBOOT
	deviceNamesForScripts = 4          // how many disks info asks for
)

type haltKind int

const (
	haltPowerOff haltKind = rebootPowerDown
	haltReboot   haltKind = rebootAuto
)

func init() {
	commands["detach"] = command{usage: "DEVICE: as drvctl -d does", words: 1, run: func(p params) (string, error) { return "", driverControl(ioctlDRVDETACHDEV, p.words[0]) }}
	commands["rescan"] = command{usage: "BUS: as drvctl -r does", words: 1, run: func(p params) (string, error) { return "", driverControl(ioctlDRVRESCANBUS, p.words[0]) }}
	commands["remount"] = command{usage: "DISK: makes the root file system on it writable", words: 1, run: func(p params) (string, error) { return "", mountExt2(device(p.words[0]), "/", mountUpdate) }}
	commands["mount"] = command{usage: "DISK DIR: an ext2 file system", words: 2, run: func(p params) (string, error) {
		if err := os.MkdirAll(p.words[1], 0o755); err != nil {
			return "", err
		}
		return "", mountExt2(device(p.words[0]), p.words[1], 0)
	}}
	commands["umount"] = command{usage: "DIR", words: 1, run: func(p params) (string, error) { return "", syscall.Unmount(p.words[0], 0) }}
}

// setup takes the console. NetBSD's kernel starts the first process with no descriptors; the
// runtime has put /dev/null on the standard ones.
func setup() (*os.File, error) {
	con, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		return os.Stderr, err
	}
	if !wantShell() {
		err = rawConsole(con)
	}
	return con, err
}

// wantShell looks for the file that guest-tests/internal/netbsd puts there: the kernel hands over
// no words of its command line.
func wantShell() bool {
	_, err := os.Stat("/interactive")
	return err == nil
}

// shell takes commands from a person. They are the agent's own: no other program is there. It
// returns only when there is nothing more to read.
func shell(con *os.File) error {
	fmt.Fprintf(con, "\n%s. No shell here: type help for what there is, poweroff to end.\n", system())
	in := bufio.NewScanner(con)
	for fmt.Fprint(con, "guest# "); in.Scan(); fmt.Fprint(con, "guest# ") {
		args := strings.Fields(in.Text())
		if len(args) == 0 {
			continue
		}
		text, err := run(args, in.Text(), nil)
		var stop *haltError
		if errors.As(err, &stop) {
			halt(stop.how)
		}
		if err != nil {
			text = explain(err)
		}
		if text = strings.TrimRight(text, "\n"); text != "" {
			fmt.Fprintln(con, text)
		}
	}
	return errors.Join(io.EOF, in.Err())
}

func system() string {
	release, err := syscall.Sysctl("kern.osrelease")
	if err != nil {
		release = err.Error()
	}
	return "NetBSD " + release
}

func halt(how haltKind) {
	syscall.Sync()
	reboot(int(how))
	// A machine without power management comes back from a power down; it can still stop.
	reboot(rebootHalt)
	select {}
}

func syncAll() error { return syscall.Sync() }

// pin does nothing: an unprivileged affinity needs a set of its own on NetBSD, and ld(4) has one
// queue.
func pin(int) {}

func alignedBuffer(n int) ([]byte, func(), error) {
	p, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	return p, func() { syscall.Munmap(p) }, err
}

func isDevice(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeDevice != 0
}

func fileSize(f *os.File) (int64, error) {
	if !isDevice(f) {
		return f.Seek(0, io.SeekEnd)
	}
	var size int64
	return size, ioctl64(f, ioctlDIOCGMEDIASIZE, &size)
}

func flushFile(f *os.File) error {
	if !isDevice(f) {
		return f.Sync()
	}
	return ioctl32(f, ioctlDIOCCACHESYNC, new(int32))
}

// disks describes the disks that have a device node and answer.
func disks() (string, error) {
	var b strings.Builder
	for unit := range deviceNamesForScripts {
		name := fmt.Sprintf("rld%dd", unit)
		f, err := os.Open("/dev/" + name)
		if err != nil {
			continue
		}
		size, err := fileSize(f)
		var sector int32
		err = errors.Join(err, ioctl32(f, ioctlDIOCGSECTORSIZE, &sector), f.Close())
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		fmt.Fprintf(&b, "%s sectors=%d block=%d\n", name, size/512, sector)
	}
	fmt.Fprintf(&b, "cpus=%d\n", runtime.NumCPU())
	return b.String(), nil
}
