// Package halt has tests stop processes of theirs.
package halt

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
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
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		t.Errorf("threads %v, %v", threads, err)
	}
	for _, name := range threads {
		for {
			text, err := os.ReadFile(name)
			if err != nil || bytes.Contains(text, []byte(") T ")) || bytes.Contains(text, []byte(") Z ")) {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}
