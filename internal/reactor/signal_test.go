package reactor

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"vdev/internal/sys"
)

// TestASignalIsBegunAnewWhereItsEventfdIsReplaced by the watch of another reactor, which writes to
// the same one: then the number stands for an eventfd that makes nobody wait, and the write still
// waits for the one before.
func TestASignalIsBegunAnewWhereItsEventfdIsReplaced(t *testing.T) {
	r := newPool(t, ModeThreads).Pick()
	ours, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	// On a busy machine the reactor's own watch may come first, and then nothing is tested.
	for range 50 {
		fd, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
		full := binary.LittleEndian.AppendUint64(nil, ^uint64(0)-1)
		if _, err := syscall.Write(int(fd), full); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		ok := false
		r.Post(func() {
			ok = r.Signal(int(fd))
			close(done)
		})
		// A write that has not begun would go to the other file.
		waits := fmt.Sprintf("%d %#x ", syscall.SYS_WRITE, fd)
		for over := false; !over; {
			select {
			case <-done:
				over = true
			default:
				now, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", r.signals.tid))
				if err != nil {
					t.Skip(err)
				}
				over = strings.HasPrefix(string(now), waits)
			}
		}
		if err := sys.Replace(int(fd), ours.Int()); err != nil {
			t.Fatal(err)
		}
		within(t, "the end of a write to an eventfd that was replaced", done)
		syscall.Close(int(fd))
		if n, _ := sys.EventfdRead(ours.Int()); ok && n > 0 {
			return
		}
	}
	t.Error("each write was ended, though nothing made it wait any more")
}
