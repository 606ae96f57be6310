package load

import (
	"errors"
	"fmt"
	"syscall"

	"vdev/internal/sys"
)

// binding is a process whose threads were bound to processors, and where they could run before.
type binding struct {
	pid    int
	former map[int][]int // by thread
}

// bind binds all threads of a process to processors, and with them those that they will start. The kernel's own, which io_uring
// has beside them, cannot be bound from outside. Where it fails, nothing is bound.
func bind(pid int, cpus []int) (*binding, error) {
	if pid == 0 {
		return nil, errors.New("the back-end cannot be bound to processors: its process cannot be seen from here, or who listened on the socket has ended")
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
				err = sys.SetAffinity(tid, cpus...)
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

// undo lets the threads run where they could before, and those that were started since where the first one can.
func (b *binding) undo() error {
	for _, tid := range threads(b.pid) {
		former, ok := b.former[tid]
		if !ok {
			former = b.former[b.pid]
		}
		err := sys.SetAffinity(tid, former...)
		if err != nil && !errors.Is(err, syscall.ESRCH) && (tid == b.pid || !errors.Is(err, syscall.EINVAL)) {
			return fmt.Errorf("the back-end's process %d remains bound to processors: %w", b.pid, err)
		}
	}
	return nil
}
