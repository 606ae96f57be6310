package devsw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"testing"

	"pgregory.net/rapid"
)

func TestDevKeepsMajorAndMinor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		major, minor := rapid.Uint32().Draw(t, "major"), rapid.Uint32().Draw(t, "minor")
		d := Makedev(major, minor)
		if d.Major() != major || d.Minor() != minor {
			t.Fatalf("Makedev(%d, %d) gives %d, %d", major, minor, d.Major(), d.Minor())
		}
	})
	if s := Makedev(19, 0).String(); s != "19,0" {
		t.Errorf("String gives %q", s)
	}
	if s := NODEV.String(); s != "nodev" {
		t.Errorf("NODEV.String gives %q", s)
	}
}

func TestNamesOfConstants(t *testing.T) {
	for _, c := range []struct {
		got  fmt.Stringer
		want string
	}{
		{IFBLK, "block"}, {IFCHR, "character"}, {Mode(0), "mode 0"},
		{BRead, "read"}, {BWrite, "write"},
		{DIOCCACHESYNC, "DIOCCACHESYNC"}, {DIOCGMEDIASIZE, "DIOCGMEDIASIZE"},
		{DIOCGSECTORSIZE, "DIOCGSECTORSIZE"}, {DIOCGDISKINFO, "DIOCGDISKINFO"},
		{DIOCWRITEZEROES, "DIOCWRITEZEROES"}, {DIOCGROW, "DIOCGROW"},
		{CmdDriver + 3, "CmdDriver+3"}, {Cmd(0), "command 0"},
	} {
		if got := c.got.String(); got != c.want {
			t.Errorf("%#v: String gives %q, want %q", c.got, got, c.want)
		}
	}
	if got := (DDisk | DMPSafe).Type(); got != DDisk {
		t.Errorf("Type gives %#x, want DDisk", got)
	}
}

func TestToErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Errno
	}{
		{nil, 0},
		{EROFS, EROFS},
		{&os.PathError{Op: "open", Path: "x", Err: ENOENT}, ENOENT},
		{fmt.Errorf("d_open: %w", os.NewSyscallError("fcntl", EAGAIN)), EAGAIN},
		{Errno(0), EIO}, // a non-nil error is never success
		{context.Canceled, ECANCELED},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), ETIMEDOUT},
		{fs.ErrInvalid, EINVAL},
		{fs.ErrPermission, EACCES},
		{fs.ErrExist, EEXIST},
		{fs.ErrNotExist, ENOENT},
		{fs.ErrClosed, EBADF},
		{io.ErrUnexpectedEOF, EIO},
		{errors.New("anything"), EIO},
	} {
		if got := ToErrno(c.err); got != c.want {
			t.Errorf("ToErrno(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}
