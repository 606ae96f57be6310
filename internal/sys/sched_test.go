package sys_test

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
)

func TestAThreadThatSleepsIsNotRunnable(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if !sys.Runnable(sys.ThreadID()) {
		t.Error("this thread is not runnable")
	}
	pipe, other, err := pipes()
	if err != nil {
		t.Fatal(err)
	}
	tid, done := make(chan int), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- sys.ThreadID()
		_, _ = sys.Readv(pipe.Int(), [][]byte{make([]byte, 1)})
	}()
	for id := <-tid; sys.Runnable(id); {
		runtime.Gosched()
	}
	other.Close()
	<-done
	pipe.Close()
	if sys.Runnable(0) {
		t.Error("no thread is runnable")
	}
}

// pipes gives the ends of a pipe.
func pipes() (r, w *sys.FD, err error) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	return sys.NewFD(p[0]), sys.NewFD(p[1]), nil
}

// TestThreadsOfAProcessThatHasEnded: one that nobody has waited for is still there.
func TestThreadsOfAProcessThatHasEnded(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	stat := func() string {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return string(text)
	}
	for !strings.Contains(stat(), ") Z ") {
		time.Sleep(time.Millisecond)
	}
	if got := sys.Threads(pid); !slices.Equal(got, []int{pid}) {
		t.Errorf("before it was waited for: %v", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if got := sys.Threads(pid); len(got) != 0 {
		t.Errorf("after that: %v", got)
	}
}
