package sys

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Yield gives the processor to whoever else wants it (sched_yield(2)), and returns at once where nobody does.
func Yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// SetAffinity binds a thread to one processor (sched_setaffinity(2)); tid 0 is the calling one.
func SetAffinity(tid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if !set.IsSet(cpu) {
		return os.NewSyscallError("sched_setaffinity", unix.EINVAL)
	}
	return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(tid, &set))
}

// ProcessCPU is how much CPU time a process has used, all its threads together, since it began (clock_getcpuclockid(3)).
func ProcessCPU(pid int) (time.Duration, error) {
	const sched = 2 // CPUCLOCK_SCHED
	var ts unix.Timespec
	if err := unix.ClockGettime(^int32(pid)<<3|sched, &ts); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(ts.Nano()), nil
}
