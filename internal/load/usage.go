package load

import (
	"fmt"
	"os"
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

// usageOf asks the system for a process's usage. What cannot be had is 0.
func usageOf(pid int) Usage {
	var u Usage
	if pid == 0 { // the process is not known, and to the system this would be ourselves
		return u
	}
	u.CPU, _ = sys.ProcessCPU(pid)
	for _, tid := range threads(pid) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, tid))
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

// threads lists the threads of a process.
func threads(pid int) (tids []int) {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}
