//go:build netbsd

package main

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// call makes a system call. Pointers among its arguments are kept alive and in place.
//
//go:uintptrescapes
func call(number, a, b, c, d, e uintptr) error {
	if _, _, errno := syscall.Syscall6(number, a, b, c, d, e, 0); errno != 0 {
		return errno
	}
	return nil
}

func ioctl64(f *os.File, cmd uintptr, v *int64) error {
	defer runtime.KeepAlive(f)
	return call(syscall.SYS_IOCTL, f.Fd(), cmd, uintptr(unsafe.Pointer(v)), 0, 0)
}

func ioctl32(f *os.File, cmd uintptr, v *int32) error {
	defer runtime.KeepAlive(f)
	return call(syscall.SYS_IOCTL, f.Fd(), cmd, uintptr(unsafe.Pointer(v)), 0, 0)
}

func reboot(how int) {
	var none byte
	call(syscall.SYS_REBOOT, uintptr(how), uintptr(unsafe.Pointer(&none)), 0, 0, 0)
}

// driverControl does what drvctl(8) does. Both commands begin with a device's name in 16 bytes; the
// rest of the rescan's argument (interface attribute, locators) is zero, which means everything.
func driverControl(cmd uintptr, name string) error {
	f, err := os.OpenFile("/dev/drvctl", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var arg [48]byte
	copy(arg[:15], name)
	return errors.Join(call(syscall.SYS_IOCTL, f.Fd(), cmd, uintptr(unsafe.Pointer(&arg)), 0, 0), f.Close())
}

// mountExt2 is mount_ext2fs(8): struct ufs_args is the device's name.
func mountExt2(device, dir string, flags int) error {
	fs, err := syscall.BytePtrFromString("ext2fs")
	if err != nil {
		return err
	}
	dev, err := syscall.BytePtrFromString(device)
	if err != nil {
		return err
	}
	path, err := syscall.BytePtrFromString(dir)
	if err != nil {
		return err
	}
	args := struct{ fspec *byte }{dev}
	return call(syscall.SYS_MOUNT, uintptr(unsafe.Pointer(fs)), uintptr(unsafe.Pointer(path)), uintptr(flags), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
}

// rawLine makes a terminal hand over and send every byte as it is.
func rawLine(f *os.File) error {
	return control(f, func(fd uintptr) error {
		var t syscall.Termios
		if err := call(syscall.SYS_IOCTL, fd, syscall.TIOCGETA, uintptr(unsafe.Pointer(&t)), 0, 0); err != nil {
			return err
		}
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		t.Cflag = t.Cflag&^syscall.CSIZE | syscall.CS8 | syscall.CLOCAL
		t.Cc[syscall.VMIN], t.Cc[syscall.VTIME] = 1, 0
		return call(syscall.SYS_IOCTL, fd, syscall.TIOCSETA, uintptr(unsafe.Pointer(&t)), 0, 0)
	})
}

func rawConsole(con *os.File) error {
	var t syscall.Termios
	if err := call(syscall.SYS_IOCTL, con.Fd(), syscall.TIOCGETA, uintptr(unsafe.Pointer(&t)), 0, 0); err != nil {
		return err
	}
	t.Lflag &^= syscall.ECHO | syscall.ECHOE | syscall.ECHOK | syscall.ISIG | syscall.IEXTEN
	t.Oflag &^= syscall.OPOST
	return call(syscall.SYS_IOCTL, con.Fd(), syscall.TIOCSETA, uintptr(unsafe.Pointer(&t)), 0, 0)
}
