package sys

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ChildAttr makes a program that is started with it (exec.Cmd.SysProcAttr) the leader of a process
// group of its own, so that a terminal's signals do not reach it, and has it get sig when the
// thread that started it ends (PR_SET_PDEATHSIG, prctl(2)). The thread, not the process: whoever
// starts it keeps the goroutine on its thread (runtime.LockOSThread) until the program has ended.
func ChildAttr(sig syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: sig}
}

// SignalGroup sends sig to all of a process group, named by its leader (kill(2)). Its error is
// ESRCH where nobody is left in it.
func SignalGroup(leader int, sig syscall.Signal) error {
	return os.NewSyscallError("kill", unix.Kill(-leader, sig))
}

// OpenPath gives a descriptor that stands for what is at path and can do nothing else (O_PATH,
// open(2)): through /proc/self/fd it can be reached when it has no name any more. It is the
// caller's.
func OpenPath(path string) (*FD, error) {
	for {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return NewFD(fd), nil
	}
}

// Become makes f's number stand for what to stands for, in one step, and closes to. Where it fails,
// both are as they were.
func (f *FD) Become(to *FD) error {
	if err := unix.Dup3(to.Int(), f.Int(), unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	return to.Close()
}

// SwitchesOf returns how many context switches a process has had that has ended and was waited for.
// Those of its children, which ended and which it waited for, are included (getrusage(2)).
func SwitchesOf(p *os.ProcessState) uint64 {
	u := p.SysUsage().(*syscall.Rusage) // as on every Unix
	return uint64(u.Nvcsw + u.Nivcsw)
}

// TryFlock locks what is behind a descriptor for itself alone (flock(2)): EAGAIN where somebody
// else has the lock. It goes with the last descriptor of the same open file.
func TryFlock(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }

// CloseOnExec keeps a descriptor that this process has inherited from the programs that it starts.
func CloseOnExec(fd int) { unix.CloseOnExec(fd) }

// KillSelf ends this process as SIGKILL does.
func KillSelf() { _ = unix.Kill(unix.Getpid(), unix.SIGKILL) }
