package load

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vdev/internal/sys"
)

// Usage is what a process has used of the machine.
type Usage struct {
	CPU      time.Duration // of all its threads, those that have ended and the kernel's on its behalf included
	Switches uint64        // of context, of the threads it has
}

func (u Usage) since(before Usage) Usage {
	// A thread that has ended takes its switches along.
	return Usage{CPU: u.CPU - before.CPU, Switches: max(u.Switches, before.Switches) - before.Switches}
}

// usageOf asks the system for a process's usage; 0 is this process. What cannot be had is 0.
func usageOf(pid int) Usage {
	if pid == 0 {
		pid = os.Getpid()
	}
	var u Usage
	u.CPU, _ = sys.ProcessCPU(pid)
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, name := range tasks {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.HasSuffix(key, "voluntary_ctxt_switches") {
				n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
				u.Switches += n
			}
		}
	}
	return u
}
