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

// missing are those of cpus that are not in there.
func missing(cpus, there []int) []int {
	return slices.DeleteFunc(slices.Clone(cpus), func(cpu int) bool { return slices.Contains(there, cpu) })
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
	// A thread that is not bound yet may start another one meanwhile.
	bound := false
	for more := true; more; {
		more = false
		for _, tid := range threads(pid) {
			if b.former[tid] != nil {
				continue
			}
			more = true
			former, err := sys.Affinity(tid)
			if err == nil {
				b.former[tid] = former
				err = setAffinity(tid, cpus)
			}
			// The first thread is none of the kernel's.
			bound = bound || err == nil
			if err == nil || errors.Is(err, syscall.ESRCH) || tid != pid && errors.Is(err, syscall.EINVAL) {
				continue
			}
			return nil, errors.Join(fmt.Errorf("the back-end's process %d cannot be bound to processors %v: %w", pid, cpus, err), b.undo())
		}
	}
	if !bound {
		return nil, fmt.Errorf("the back-end cannot be bound to processors: its process %d has ended", pid)
	}
	return b, nil
}

// undo lets the threads run where they could before, and those that were started since where the
// first one can.
func (b *binding) undo() error {
	done := map[int]bool{}
	// A thread that is bound yet may start another one meanwhile.
	for more := true; more; {
		more = false
		for _, tid := range threads(b.pid) {
			if done[tid] {
				continue
			}
			more, done[tid] = true, true
			former, ok := b.former[tid]
			if !ok {
				former = b.former[b.pid]
			}
			err := sys.SetAffinity(tid, former...)
			if err != nil && !errors.Is(err, syscall.ESRCH) && (tid == b.pid || !errors.Is(err, syscall.EINVAL)) {
				return fmt.Errorf("the back-end's process %d remains bound to processors: %w", b.pid, err)
			}
		}
	}
	return nil
}
