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
	Known bool // else the process cannot be seen, or has ended
	// of all its threads, those that have ended and the kernel's on its behalf included
	CPU time.Duration

	SwitchesKnown bool   // else a thread has ended, and how often it was switched is gone with it
	Switches      uint64 // of context, of the threads it has
}

// sample is what a process has used by some moment.
type sample struct {
	known    bool
	cpu      time.Duration
	switches map[int]uint64 // of each thread
}

// since is what was used between two samples.
func (s sample) since(before sample) Usage {
	if !s.known || !before.known {
		return Usage{}
	}
	u := Usage{Known: true, CPU: s.cpu - before.cpu, SwitchesKnown: true}
	for tid, n := range s.switches {
		u.Switches += n - before.switches[tid]
	}
	for tid := range before.switches {
		if _, there := s.switches[tid]; !there {
			u.SwitchesKnown, u.Switches = false, 0
		}
	}
	return u
}

// usedBy asks the system what a process has used; pid 0 is nobody.
func usedBy(pid int) sample {
	if pid == 0 { // to the system this would be ourselves
		return sample{}
	}
	cpu, err := sys.ProcessCPU(pid)
	if err != nil {
		return sample{}
	}
	s := sample{known: true, cpu: cpu, switches: map[int]uint64{}}
	for _, tid := range sys.Threads(pid) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, tid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.HasSuffix(key, "voluntary_ctxt_switches") {
				n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
				s.switches[tid] += n
			}
		}
	}
	return s
}

// Field gives what a file of lines "name: value", such as /proc/cpuinfo, says first of name;
// nothing where it does not.
func Field(file, name string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
