// Package tasks tells how many tasks the host lets this process have, the kernel's own threads for
// it included. Go's runtime ends the process when it cannot make a thread, so whoever makes threads
// has to stay below that number.
package tasks

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"vdev/internal/sys"
)

// Limit is how many tasks there may be.
type Limit struct {
	N    int    // those of now included; Unlimited where the host sets no limit
	Name string // of what limits them; empty where nothing does
}

// Unlimited is as many as a process may have at all.
const Unlimited = 1 << 22 // PID_MAX_LIMIT

// Find asks the host: the pids controllers of all control groups that the process is in (pids.max,
// less the tasks that others have there), and RLIMIT_NPROC (likewise), which does not hold for
// root. What cannot be read does not limit. Others may take more later.
func Find() Limit { return find("/", os.Getuid(), sys.MaxProcesses(), os.ReadFile) }

// find is Find on a file system of tests' own, where root is not "/". It reads counts with read.
func find(root string, uid int, nproc uint64, read func(name string) ([]byte, error)) Limit {
	l := Limit{N: Unlimited}
	take := func(n int, name string) {
		if n < l.N {
			l = Limit{max(n, 0), name}
		}
	}
	for _, dir := range groups(root) {
		most, err1 := number(filepath.Join(dir, "pids.max"), read)
		others, err2 := others(root, func() (int, error) { return number(filepath.Join(dir, "pids.current"), read) }, read)
		if err1 == nil && err2 == nil {
			take(most-others, fmt.Sprintf("pids.max=%d of control group %s", most, strings.TrimPrefix(dir, root)))
		}
	}
	if uid != 0 && nproc < Unlimited {
		others, err := others(root, func() (int, error) { return ofUser(root, uid, read), nil }, read)
		if err == nil {
			take(int(nproc)-others, fmt.Sprintf("RLIMIT_NPROC=%d", nproc))
		}
	}
	return l
}

// looks is how often two counts are read at most, until they agree.
const looks = 20

// others is how many tasks others have of those that all counts. The two counts are read one after
// the other, and this process may make a thread, or end one, between them: they are read until two
// looks agree.
func others(root string, all func() (int, error), read func(name string) ([]byte, error)) (int, error) {
	last := -1
	for range looks {
		n, err := all()
		if err != nil {
			return 0, err
		}
		n -= threads(root, "self", read)
		if n == last {
			break
		}
		last = n
	}
	return max(last, 0), nil
}

// groups gives the directories of the control groups that limit tasks, of both versions, the outer
// ones as well.
func groups(root string) (dirs []string) {
	text, _ := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	for line := range strings.Lines(string(text)) {
		// hierarchy-ID:controller-list:cgroup-path (cgroups(7))
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		var at []string
		switch {
		case f[0] == "0":
			at = []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"}
		case strings.Contains(","+f[1]+",", ",pids,"):
			at = []string{"sys/fs/cgroup/pids", "sys/fs/cgroup/" + f[1]}
		}
		for _, mount := range at {
			// In a container the path may be the host's, of which only the last part is to be seen
			// here, as the root.
			for p := path.Join("/", f[2]); ; p = path.Dir(p) {
				dirs = append(dirs, filepath.Join(root, mount, p))
				if p == "/" {
					break
				}
			}
		}
	}
	return dirs
}

func number(name string, read func(name string) ([]byte, error)) (int, error) {
	text, err := read(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text))) // "max" is no number
}

// threads is how many threads a process has, or 0.
func threads(root, pid string, read func(name string) ([]byte, error)) int {
	n, _ := strconv.Atoi(field(root, pid, "Threads:", read))
	return n
}

// ofUser counts the threads of all processes of a user.
func ofUser(root string, uid int, read func(name string) ([]byte, error)) (n int) {
	list, _ := os.ReadDir(filepath.Join(root, "proc"))
	for _, e := range list {
		if _, err := strconv.Atoi(e.Name()); err == nil && field(root, e.Name(), "Uid:", read) == strconv.Itoa(uid) {
			n += threads(root, e.Name(), read)
		}
	}
	return n
}

// field is the first word of a line of /proc/PID/status.
func field(root, pid, name string, read func(name string) ([]byte, error)) string {
	text, _ := read(filepath.Join(root, "proc", pid, "status"))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				return f[0]
			}
		}
	}
	return ""
}

// Reserve makes Go's runtime make threads until the process has n. The runtime takes from these
// when it needs one. A thread that exists cannot be refused later, when others have taken what the
// host allows. They stay, but for those whose goroutine ends locked to its thread. The host has to
// allow n now: see Find.
func Reserve(n int) {
	n -= threads("/", "self", os.ReadFile)
	var made, gone sync.WaitGroup
	enough := make(chan struct{})
	made.Add(max(n, 0))
	for range n {
		gone.Go(func() {
			// Nobody else can have the thread of a goroutine that is locked to it, though it
			// sleeps.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			made.Done()
			<-enough
		})
	}
	made.Wait()
	close(enough)
	gone.Wait()
}
