package guesttests

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// makeLossy is "lossy NAME": NAME is a block device that takes writes into the host's page cache
// and cannot write them back: a loop device on a sparse file of 4 MiB, on a file system that has
// room for a quarter of it. The host tells a flush of that once. The script is skipped where there
// can be none.
func makeLossy(w *world, args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("usage: lossy NAME")
	}
	losetup, err := exec.LookPath("losetup")
	switch _, e := os.Stat("/dev/loop-control"); {
	case os.Getuid() != 0:
		w.t.Skip("only root can make a loop device")
	case err != nil:
		w.t.Skip("there is no losetup (Debian: mount)")
	case e != nil:
		w.t.Skip("this host has no loop devices: " + e.Error())
	}
	dir := filepath.Join(w.dir, args[0]+".small")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := syscall.Mount("vdev-test", dir, "tmpfs", 0, "size=1M"); err != nil {
		return "", err
	}
	w.undo = append(w.undo, func() error { return os.NewSyscallError("umount", syscall.Unmount(dir, 0)) })
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 4<<20)); err != nil {
		return "", err
	}
	out, err := exec.Command(losetup, "--find", "--show", file).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("losetup: %w: %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	w.undo = append(w.undo, func() error {
		if out, err := exec.Command(losetup, "--detach", loop).CombinedOutput(); err != nil {
			return fmt.Errorf("losetup --detach %s: %w: %s", loop, err, out)
		}
		return nil
	})
	return "", os.Symlink(loop, filepath.Join(w.dir, args[0]))
}
