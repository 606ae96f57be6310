package qemunbd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/child"
	"vdev/internal/sys"
	"vdev/internal/test/halt"
)

// predecessor is a process that serves an image, to which writes were made that were not flushed.
type predecessor struct {
	*child.Process
	cmd     *exec.Cmd
	witness int
	holder  uint64
}

// newPredecessor makes one, which keeps its records in dir.
func newPredecessor(t *testing.T, file, dir string) *predecessor {
	t.Helper()
	p := &predecessor{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), serveEnv+"="+file, recordsEnv+"="+dir)
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p.cmd.Stdout = stdout
	p.Process, err = child.Start(p.cmd, syscall.SIGKILL)
	stdout.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	socket := 0
	if _, err := fmt.Fscan(out, &p.witness, &p.holder, &socket); err != nil {
		t.Fatal(err)
	}
	// It ends itself, or it would flush.
	uri := fmt.Sprintf("nbd+unix:///?socket=/proc/%d/fd/%d", p.cmd.Process.Pid, socket)
	text, err := exec.Command("qemu-io", "-t", "writeback", "-f", "raw", "-c", "write -P 7 0 4M", "-c", "sigraise 9", uri).CombinedOutput()
	if !strings.Contains(string(text), "wrote 4194304/4194304") {
		t.Fatalf("qemu-io: %v: %s", err, text)
	}
	return p
}

func (p *predecessor) kill() {
	_ = p.cmd.Process.Kill()
	<-p.Ended()
}

// childrenOf gives the processes that a process has started, of which there is one at least.
func childrenOf(t *testing.T, pid int) (all []int) {
	t.Helper()
	for _, tid := range sys.Threads(pid) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, tid))
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range strings.Fields(string(text)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, child)
		}
	}
	if len(all) == 0 {
		t.Fatalf("process %d has no children", pid)
	}
	return all
}

// TestAServerFindsOutHowAnothersProgramHasEnded: one that was killed alone leaves a qemu-nbd that
// ends in order, with all that it has answered; one that was killed with it does not.
func TestAServerFindsOutHowAnothersProgramHasEnded(t *testing.T) {
	for name, c := range map[string]struct {
		kill  func(t *testing.T, p *predecessor)
		ended bool
	}{
		"killed alone": {func(_ *testing.T, p *predecessor) { p.kill() }, true},
		"killed with its qemu-nbd": {func(t *testing.T, p *predecessor) {
			// All of them at once, as the kill of a container does: none sees that another one has
			// ended.
			halt.Process(t, p.cmd.Process.Pid)
			halt.Process(t, p.witness)
			for _, pid := range childrenOf(t, p.witness) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			_ = syscall.Kill(p.witness, syscall.SIGKILL)
			p.kill()
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			file, dir := makeImage(t, "qcow2", "16M"), filepath.Join(t.TempDir(), "state")
			p := newPredecessor(t, file, dir)
			c.kill(t, p)
			s := newServer(t, Config{File: file, Format: "qcow2", Records: dir})
			start(t, s)
			if ended, known := s.Ended(p.holder); ended != c.ended || !known {
				t.Errorf("it has ended in order: %v, and that is known: %v; want %v, true", ended, known, c.ended)
			}
			if _, known := s.Ended(p.holder + 2); known {
				t.Error("something is known of one that never was")
			}
			s.Stop()
			out, err := exec.Command("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 7 0 4M", file).CombinedOutput()
			if there := err == nil; there != c.ended {
				t.Errorf("the writes are there: %v, want %v: %s", there, c.ended, out)
			}
		})
	}
}

// TestAnEndInOrderLeavesNoRecord, and one that was not leaves it.
func TestAnEndInOrderLeavesNoRecord(t *testing.T) {
	for name, kill := range map[string]bool{"in order": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := newServer(t, Config{File: makeImage(t, "qcow2", "16M"), Format: "qcow2", Records: dir})
			start(t, s)
			pid, ended := s.running()
			if kill {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				<-ended
			}
			_ = s.Close()
			left, err := filepath.Glob(filepath.Join(dir, "*"))
			if err != nil || (len(left) == 1) != kill {
				t.Errorf("%v; there are %q", err, left)
			}
			s.socket, _ = sys.OpenPath("/") // for newServer's Close
		})
	}
}

// TestAProgramThatEndsInOrderDoesNotHideTheLossOfTheOneBefore: whoever comes after a vdev that was
// killed has nothing but the record.
func TestAProgramThatEndsInOrderDoesNotHideTheLossOfTheOneBefore(t *testing.T) {
	s := newServer(t, Config{File: makeImage(t, "qcow2", "16M"), Format: "qcow2", Records: t.TempDir()})
	start(t, s)
	pid, ended := s.running()
	_ = syscall.Kill(pid, syscall.SIGKILL)
	<-ended
	start(t, s)
	s.Stop()
	if ended, known := s.Ended(s.holder); ended || !known {
		t.Errorf("it has ended in order: %v, and that is known: %v; want false, true", ended, known)
	}
}

// TestAProgramThatDoesNotBeginLeavesTheRecord of the one before, which a guest's page names still.
func TestAProgramThatDoesNotBeginLeavesTheRecord(t *testing.T) {
	file := makeImage(t, "qcow2", "16M")
	s := newServer(t, Config{File: file, Format: "qcow2", Records: t.TempDir()})
	start(t, s)
	if text, err := os.ReadFile(recordFile(s.conf.Records, s.holder)); err != nil || string(text) != begun {
		t.Errorf("while it serves the record says %q, %v", text, err)
	}
	s.Stop()
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("QFI\xfb no image"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, _, err := s.current() // Start would look at it first
	if err != nil {
		t.Fatal(err)
	}
	<-p.ended
	if ended, known := s.Ended(s.holder); p.isUp() || !ended || !known {
		t.Errorf("up: %v; ended in order: %v, known: %v; want false, true, true", p.isUp(), ended, known)
	}
}

// TestRecordsHaveABound.
func TestRecordsHaveABound(t *testing.T) {
	dir := t.TempDir()
	for i := range maxRecords + 5 {
		f, err := newRecord(dir, uint64(i+1))
		if err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(f.Name(), at, at); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	f, err := newRecord(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != maxRecords+1 {
		t.Errorf("%v; %d records are left, want %d", err, len(left), maxRecords+1)
	}
	if _, known := readRecord(dir, 1); known {
		t.Error("the oldest one is still there")
	}
	if ended, known := readRecord(dir, maxRecords+5); ended || !known {
		t.Errorf("of the newest one is said %v, %v", ended, known)
	}
}

// TestYoungRecordsStay, however many they are: many guests may be about to come back.
func TestYoungRecordsStay(t *testing.T) {
	dir := t.TempDir()
	for i := range maxRecords + 5 {
		f, err := newRecord(dir, uint64(i+1))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if _, known := readRecord(dir, 1); !known {
		t.Error("the oldest one has gone")
	}
}

// TestWhatAServerHolds.
func TestWhatAServerHolds(t *testing.T) {
	file := makeImage(t, "qcow2", "16M")
	for _, c := range []struct {
		conf Config
		want devsw.Holding
	}{
		{Config{File: file, Format: "qcow2"}, devsw.HoldsToClose},
		{Config{File: file, Format: "qcow2", Snapshot: true}, devsw.HoldsAlways},
		{Config{File: file, Format: "qcow2", ReadOnly: true}, devsw.HoldsNothing},
		{Config{File: file, Format: Raw}, devsw.HoldsNothing},
	} {
		holds, holder := newServer(t, c.conf).Holding()
		if holds != c.want || (holder != 0) != (holds != devsw.HoldsNothing) {
			t.Errorf("%+v: %v, %#x, want %v", c.conf, holds, holder, c.want)
		}
	}
	if a, b := devsw.NewHolder(), devsw.NewHolder(); a == b {
		t.Error("two holders have one number")
	}
}
