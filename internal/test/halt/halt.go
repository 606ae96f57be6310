// Package halt has tests stop processes of theirs.
package halt

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
)

// Process sends SIGSTOP to process pid, and returns when it stands still or has ended. On a busy
// machine its threads go on for some time.
func Process(t testing.TB, pid int) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err == nil {
		defer p.Release()
		err = p.Signal(syscall.SIGSTOP)
	}
	if err != nil {
		t.Errorf("SIGSTOP: %v", err)
		return
	}
	threads := sys.Threads(pid)
	if len(threads) == 0 {
		t.Errorf("process %d has no threads", pid)
	}
	for _, tid := range threads {
		for {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, tid))
			if err != nil || bytes.Contains(text, []byte(") T ")) || bytes.Contains(text, []byte(") Z ")) {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}
