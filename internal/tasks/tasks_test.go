package tasks

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// host makes a file system of these files.
func host(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestTheLowestLimitCounts(t *testing.T) {
	const none = ^uint64(0)
	self := "Name:\tvdev\nUid:\t1000\t1000\t1000\t1000\nThreads:\t7\n"
	for name, c := range map[string]struct {
		files map[string]string
		uid   int
		nproc uint64
		want  Limit
	}{
		"nothing to be read": {nil, 1000, none, Limit{Unlimited, ""}},
		"version 2": {map[string]string{
			"proc/self/cgroup":                    "0::/vm/vdev\n",
			"sys/fs/cgroup/vm/vdev/pids.max":      "max\n",
			"sys/fs/cgroup/vm/vdev/pids.current":  "7\n",
			"sys/fs/cgroup/vm/pids.max":           "100\n",
			"sys/fs/cgroup/vm/pids.current":       "27\n",
			"sys/fs/cgroup/vm/other/pids.max":     "1\n",
			"sys/fs/cgroup/vm/other/pids.current": "1\n",
		}, 0, none, Limit{80, "pids.max=100 of control group /sys/fs/cgroup/vm"}},
		"version 1": {map[string]string{
			"proc/self/cgroup":                     "8:pids:/a\n5:memory:/b\n0::/\n",
			"sys/fs/cgroup/pids/a/pids.max":        "50\n",
			"sys/fs/cgroup/pids/a/pids.current":    "7\n",
			"sys/fs/cgroup/memory/b/pids.max":      "1\n",
			"sys/fs/cgroup/memory/b/pids.current":  "1\n",
			"sys/fs/cgroup/unified/cgroup.threads": "",
		}, 0, none, Limit{50, "pids.max=50 of control group /sys/fs/cgroup/pids/a"}},
		"a container's own root": {map[string]string{
			"proc/self/cgroup":           "0::/docker/0123\n",
			"sys/fs/cgroup/pids.max":     "30\n",
			"sys/fs/cgroup/pids.current": "10\n",
		}, 0, none, Limit{27, "pids.max=30 of control group /sys/fs/cgroup"}},
		"a full one": {map[string]string{
			"proc/self/cgroup":           "0::/\n",
			"sys/fs/cgroup/pids.max":     "30\n",
			"sys/fs/cgroup/pids.current": "90\n",
		}, 0, none, Limit{0, "pids.max=30 of control group /sys/fs/cgroup"}},
		"of the user": {map[string]string{
			"proc/12/status": "Uid:\t1000\nThreads:\t7\n",
			"proc/13/status": "Uid:\t1000\nThreads:\t3\n",
			"proc/14/status": "Uid:\t1001\nThreads:\t30\n",
		}, 1000, 60, Limit{57, "RLIMIT_NPROC=60"}},
		"of root": {nil, 0, 60, Limit{Unlimited, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"proc/self/status": self}
			for name, text := range c.files {
				files[name] = text
			}
			if got := find(host(t, files), c.uid, c.nproc, os.ReadFile); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// TestAThreadThatComesBetweenTwoCountsIsNotOfOthers nor one that ends there: Go's runtime makes
// threads while the limit is found.
func TestAThreadThatComesBetweenTwoCountsIsNotOfOthers(t *testing.T) {
	for name, change := range map[string]int{"one comes": 1, "one ends": -1} {
		t.Run(name, func(t *testing.T) {
			root := host(t, map[string]string{
				"proc/self/cgroup":            "0::/vdev\n",
				"sys/fs/cgroup/vdev/pids.max": "36\n",
			})
			own, counts := 7, 0
			count := func(n int) ([]byte, error) {
				defer func() {
					if counts++; counts == 1 { // between the first count and the second
						own += change
					}
				}()
				return fmt.Appendf(nil, "Threads:\t%d\n", n), nil
			}
			read := func(file string) ([]byte, error) {
				switch strings.TrimPrefix(file, root) {
				case "/proc/self/status":
					return count(own)
				case "/sys/fs/cgroup/vdev/pids.current":
					text, err := count(own + 4) // the four of another process
					return []byte(strings.Fields(string(text))[1] + "\n"), err
				}
				return os.ReadFile(file)
			}
			if got, want := find(root, 0, 0, read), (Limit{32, "pids.max=36 of control group /sys/fs/cgroup/vdev"}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestThisHostIsUnderstood(t *testing.T) {
	if l := Find(); l.N < 1 {
		t.Errorf("this process may have %d tasks", l.N)
	}
	if n := threads("/", "self", os.ReadFile); n < 1 {
		t.Errorf("this process has %d threads", n)
	}
}
