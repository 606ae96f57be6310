package sys

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Yield gives the processor to whoever else wants it (sched_yield(2)), and returns at once where
// nobody does.
func Yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// SetAffinity binds a thread to processors (sched_setaffinity(2)); tid 0 is the calling one.
func SetAffinity(tid int, cpus ...int) error {
	var set unix.CPUSet
	for _, cpu := range cpus {
		if set.Set(cpu); !set.IsSet(cpu) {
			return os.NewSyscallError("sched_setaffinity", unix.EINVAL)
		}
	}
	return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(tid, &set))
}

// Affinity returns the processors that a thread may run on (sched_getaffinity(2)); tid 0 is the
// calling one.
func Affinity(tid int) (cpus []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &set); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// ProcessCPU is how much CPU time a process has used, all its threads together, since it began
// (clock_getcpuclockid(3)).
func ProcessCPU(pid int) (time.Duration, error) {
	const sched = 2 // CPUCLOCK_SCHED
	var ts unix.Timespec
	if err := unix.ClockGettime(^int32(pid)<<3|sched, &ts); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(ts.Nano()), nil
}

// ThreadID is the calling thread's number. It is the goroutine's for as long as that is locked to
// its thread.
func ThreadID() int { return unix.Gettid() }

// Interrupt interrupts the system call that waits in the thread tid of this process, if it can be
// interrupted; the kernel then begins the call anew. It sends SIGURG, which the Go runtime sends to
// its threads too, and which does nothing where nobody has asked for it.
func Interrupt(tid int) error {
	return os.NewSyscallError("tgkill", unix.Tgkill(unix.Getpid(), tid, unix.SIGURG))
}

// Runnable tells whether a thread of this process runs, or would run if it had a processor
// (proc_pid_stat(5)). False where that cannot be seen.
func Runnable(tid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
	if err != nil {
		return false
	}
	// The name before it may have anything in it.
	_, state, ok := bytes.Cut(text[bytes.LastIndexByte(text, ')')+1:], []byte(" "))
	return ok && len(state) > 0 && state[0] == 'R'
}
