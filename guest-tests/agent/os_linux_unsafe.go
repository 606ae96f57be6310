//go:build linux

package main

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// ioctl makes the call. An argument that is a pointer is kept alive and in place.
//
//go:uintptrescapes
func ioctl(fd, cmd, arg uintptr) error {
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, fd, cmd, arg); e != 0 {
		return e
	}
	return nil
}

func ioctlRange(fd, cmd uintptr, r [2]uint64) error {
	return ioctl(fd, cmd, uintptr(unsafe.Pointer(&r)))
}

func finitModule(f *os.File) error {
	options := []byte{0}
	_, _, e := syscall.Syscall(finitModuleNumber, f.Fd(), uintptr(unsafe.Pointer(&options[0])), 0)
	runtime.KeepAlive(f)
	if e != 0 {
		return e
	}
	return nil
}

// setAffinity keeps the calling thread on one CPU. Failing that it runs anywhere, which does no
// harm.
func setAffinity(cpu int) {
	var set [16]uint64
	set[cpu/64] |= 1 << (cpu % 64)
	syscall.Syscall(syscall.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(set), uintptr(unsafe.Pointer(&set)))
}

// rawConsole stops the terminal from echoing and from touching what is sent; it still hands over
// whole lines.
func rawConsole(con *os.File) error {
	var t syscall.Termios
	if err := ioctl(con.Fd(), syscall.TCGETS, uintptr(unsafe.Pointer(&t))); err != nil {
		return err
	}
	t.Lflag &^= syscall.ECHO | syscall.ECHOE | syscall.ECHOK | syscall.ISIG | syscall.IEXTEN
	t.Oflag &^= syscall.OPOST
	return ioctl(con.Fd(), syscall.TCSETS, uintptr(unsafe.Pointer(&t)))
}

// rawLine makes a terminal hand over and send every byte as it is.
func rawLine(f *os.File) error {
	return control(f, func(fd uintptr) error {
		var t syscall.Termios
		if err := ioctl(fd, syscall.TCGETS, uintptr(unsafe.Pointer(&t))); err != nil {
			return err
		}
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		t.Cflag = t.Cflag&^syscall.CSIZE | syscall.CS8
		t.Cc[syscall.VMIN], t.Cc[syscall.VTIME] = 1, 0
		return ioctl(fd, syscall.TCSETS, uintptr(unsafe.Pointer(&t)))
	})
}

// size asks how large a terminal is.
func size(tty *os.File) (rows, columns uint16, err error) {
	var size [4]uint16
	err = ioctl(tty.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	return size[0], size[1], err
}

// setSize tells programs how large the terminal is; the serial line cannot.
func setSize(tty *os.File, rows, columns uint16) error {
	size := [4]uint16{rows, columns}
	return ioctl(tty.Fd(), syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&size)))
}
