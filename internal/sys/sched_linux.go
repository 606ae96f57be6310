package sys

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
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

// Threads lists the threads of a process, all that it has at some moment of the call; none where
// that cannot be seen (proc_pid_task(5)).
func Threads(pid int) []int {
	return whole(func() []int { return listThreads(pid) }, func() int { return countThreads(pid) })
}

// whole returns a whole list of what may come and go. The kernel ends a list of threads early where
// one ends meanwhile. But where all of a list were there when they were counted, and were as many,
// it is whole.
func whole(list func() []int, count func() int) []int {
	for tids := list(); ; {
		n := count()
		again := list()
		if len(tids) == n && !slices.ContainsFunc(tids, func(tid int) bool { return !slices.Contains(again, tid) }) {
			return tids
		}
		tids = again
	}
}

func listThreads(pid int) (tids []int) {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}

func countThreads(pid int) (n int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if count, ok := strings.CutPrefix(line, "Threads:"); ok {
			n, _ = strconv.Atoi(strings.TrimSpace(count))
		}
	}
	return n
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
