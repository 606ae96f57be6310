package load

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"vdev/internal/sys"
)

// Usage is what a process has used of the machine. The zero value is: not known.
type Usage struct {
	Known    bool          // else the process cannot be seen, has ended, or is not the one that works
	CPU      time.Duration // of all its threads, those that have ended and the kernel's on its behalf included
	Switches uint64        // of context, of the threads it has
}

func (u Usage) since(before Usage) Usage {
	if !u.Known || !before.Known {
		return Usage{}
	}
	// A thread that has ended takes its switches along.
	return Usage{Known: true, CPU: u.CPU - before.CPU, Switches: max(u.Switches, before.Switches) - before.Switches}
}

// usageOf asks the system for a process's usage; pid 0 is nobody.
func usageOf(pid int) Usage {
	if pid == 0 { // to the system this would be ourselves
		return Usage{}
	}
	cpu, err := sys.ProcessCPU(pid)
	if err != nil {
		return Usage{}
	}
	u := Usage{Known: true, CPU: cpu}
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

// alive tells whether a process is there and has not ended. pid 0 is nobody.
func alive(pid int) bool {
	state := Field(fmt.Sprintf("/proc/%d/status", pid), "State")
	return state != "" && state[0] != 'Z' // Z: its parent has not waited for it yet (proc_pid_status(5))
}

// Field gives what a file of lines "name: value", such as /proc/cpuinfo, says first of name; nothing where it does not.
func Field(file, name string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
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
