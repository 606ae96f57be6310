package load

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"

	"vdev/internal/sys"
)

// setAffinity binds a thread to processors, which must all be there; tid 0 is the calling one.
// Where they are not, it is left bound to others than before.
func setAffinity(tid int, cpus []int) error {
	if err := sys.SetAffinity(tid, cpus...); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	} else if err == nil {
		// Those that are not there are left out without a word, unless they are all.
		if bound, err := sys.Affinity(tid); err != nil || len(missing(cpus, bound)) == 0 {
			return err
		}
	}
	// Asked for all, the system binds to all that are allowed.
	all := make([]int, 1024)
	for cpu := range all {
		all[cpu] = cpu
	}
	if sys.SetAffinity(tid, all...) == nil {
		if allowed, err := sys.Affinity(tid); err == nil && len(missing(cpus, allowed)) > 0 {
			return fmt.Errorf("processor %d is not there, or not allowed: there are %v", missing(cpus, allowed)[0], allowed)
		}
	}
	return os.NewSyscallError("sched_setaffinity", syscall.EINVAL)
}

// missing are those of numbers that are not in there.
func missing(numbers, there []int) []int {
	return slices.DeleteFunc(slices.Clone(numbers), func(n int) bool { return slices.Contains(there, n) })
}

// binds returns an error where what j has bound to processors cannot be.
func (l *link) binds(j *Job) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread is bound
		done <- bindOwn(j.CPUs)
	}()
	err := <-done
	if err == nil && len(j.BackendCPUs) > 0 {
		var b *binding
		if b, err = bind(l.pid, j.BackendCPUs); err == nil {
			err = b.undo()
		}
	}
	return err
}

// bindOwn binds the calling thread to processors; none: as it is.
func bindOwn(cpus []int) error {
	if len(cpus) == 0 {
		return nil
	}
	if err := setAffinity(0, cpus); err != nil {
		return fmt.Errorf("the load cannot be bound to processors %v: %w", cpus, err)
	}
	return nil
}

// binding is a process whose threads were bound to processors, and where they could run before.
type binding struct {
	pid    int
	former map[int][]int // by thread
}

// bind binds all threads of a process to processors, and with them those that they will start. The
// kernel's own, which io_uring has beside them, cannot be bound from outside. Where it fails,
// nothing is bound.
func bind(pid int, cpus []int) (*binding, error) {
	if pid == 0 {
		return nil, errors.New("the back-end cannot be bound to processors: which process it is cannot be seen from here")
	}
	b := &binding{pid: pid, former: map[int][]int{}}
	// Where the threads could run is known before any of them is bound: what a bound one starts
	// begins bound.
	err := eachThread(pid, func(tid int) error {
		former, err := sys.Affinity(tid)
		if err == nil {
			b.former[tid] = former
		}
		return err
	})
	bound := false
	if err == nil {
		err = eachThread(pid, func(tid int) error {
			err := setAffinity(tid, cpus)
			bound = bound || err == nil // the first thread is none of the kernel's
			return err
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the back-end's process %d cannot be bound to processors %v: %w", pid, cpus, err), b.undo())
	}
	if !bound {
		return nil, fmt.Errorf("the back-end cannot be bound to processors: its process %d has ended", pid)
	}
	return b, nil
}

// undo lets the threads run where they could before, and those that were started since where the
// first one can. Only a thread whose clone(2) has begun and not ended in this time can be missed:
// nothing shows it.
func (b *binding) undo() error {
	err := eachThread(b.pid, func(tid int) error {
		former, ok := b.former[tid]
		if !ok {
			former = b.former[b.pid]
		}
		return sys.SetAffinity(tid, former...)
	})
	if err != nil {
		return fmt.Errorf("the back-end's process %d remains bound to processors: %w", b.pid, err)
	}
	return nil
}

// eachThread has do done for each thread of a process, with those that are started meanwhile. It
// passes over those that have ended (ESRCH), and the kernel's own, which cannot be bound (EINVAL).
func eachThread(pid int, do func(tid int) error) error {
	done := map[int]bool{}
	for more := true; more; {
		more = false
		for _, tid := range sys.Threads(pid) {
			if done[tid] {
				continue
			}
			more, done[tid] = true, true
			if err := do(tid); err != nil && !errors.Is(err, syscall.ESRCH) && (tid == pid || !errors.Is(err, syscall.EINVAL)) {
				return err
			}
		}
	}
	return nil
}
