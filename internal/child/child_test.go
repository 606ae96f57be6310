package child

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// playParent makes the test's program one that starts a child, prints its process, and waits to be
// killed.
const playParent = "VDEV_TEST_PLAY_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(playParent) != "" {
		c, err := Program{Args: []string{"sleep", "1000"}}.Start()
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(c.PID())
		select {}
	}
	goleak.VerifyTestMain(m)
}

func TestAChildEndsWithAParentThatIsKilled(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(self)
	parent.Env = append(os.Environ(), playParent+"=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, perr := strconv.Atoi(strings.TrimSpace(line))
	if err := errors.Join(err, perr, parent.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // which was killed
	awaitEnd(pid)
}

// TestAChildOutlivesTheThreadThatAskedForIt: a thread of Go's ends with a goroutine that is locked
// to it, and the host takes it for the end of the parent.
func TestAChildOutlivesTheThreadThatAskedForIt(t *testing.T) {
	type started struct {
		c      *Process
		err    error
		thread int
	}
	asked := make(chan started, 1)
	var ask func()
	ask = func() {
		runtime.LockOSThread()
		if syscall.Gettid() == os.Getpid() { // the first thread does not end
			other := make(chan struct{})
			go func() {
				defer close(other)
				ask()
			}()
			<-other
			runtime.UnlockOSThread()
			return
		}
		c, err := Start(exec.Command("sleep", "1000"), syscall.SIGKILL)
		asked <- started{c, err, syscall.Gettid()}
	}
	go ask()
	s := <-asked
	if s.err != nil {
		t.Fatal(s.err)
	}
	task := filepath.Join("/proc/self/task", strconv.Itoa(s.thread))
	for _, err := os.Stat(task); err == nil; _, err = os.Stat(task) {
		time.Sleep(time.Millisecond)
	}
	select {
	case <-s.c.Ended():
		t.Fatalf("it has ended: %v", s.c.Err())
	case <-time.After(100 * time.Millisecond): // for one that is being killed
	}
	if err := s.c.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// awaitEnd returns when a process has ended. Where nobody waits for it, it stays as a zombie.
func awaitEnd(pid int) {
	for {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if err != nil || bytes.Contains(text, []byte(") Z ")) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAProgramIsToldToStop(t *testing.T) {
	c, err := Program{Args: []string{"sh", "-c", "echo begun; exec sleep 1000"}}.Start()
	if err != nil {
		t.Fatal(err)
	}
	for c.Said() != "begun" {
		time.Sleep(time.Millisecond)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if c.State() == nil {
		t.Error("it was not waited for")
	}
	if err := c.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "ended before it was told to") || !strings.Contains(err.Error(), "begun") {
		t.Errorf("when it had ended: %v", err)
	}
}

func TestAProgramThatFailsAtItsEndIsAnError(t *testing.T) {
	c, err := Program{Args: []string{"sh", "-c", "trap 'echo panic; exit 2' TERM; echo begun; while :; do sleep 0.01; done"}}.Start()
	if err != nil {
		t.Fatal(err)
	}
	for c.Said() != "begun" {
		time.Sleep(time.Millisecond)
	}
	if err := c.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 2") || !strings.Contains(err.Error(), "panic") {
		t.Errorf("error %v", err)
	}
}

func TestAProgramThatDoesNotEndIsKilledInTheEnd(t *testing.T) {
	c, err := Program{Args: []string{"sh", "-c", "trap '' TERM; echo begun; while :; do sleep 0.01; done"}}.Start()
	if err != nil {
		t.Fatal(err)
	}
	for c.Said() != "begun" {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Stop(ctx); err == nil || !strings.Contains(err.Error(), "did not end on SIGTERM") || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("error %v", err)
	}
}

// TestWhatAProgramHasStartedIsToldToEnd: it has the program's output open, which Run waits for.
func TestWhatAProgramHasStartedIsToldToEnd(t *testing.T) {
	c, err := Program{Args: []string{"sh", "-c", "sleep 1000 & echo $!; wait"}}.Start()
	if err != nil {
		t.Fatal(err)
	}
	for c.Said() == "" {
		time.Sleep(time.Millisecond)
	}
	pid, err := strconv.Atoi(c.Said())
	if err := errors.Join(err, c.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}
	awaitEnd(pid)
}

// TestAProgramThatWasWaitedForIsNotSignalled, though somebody holds its output: its group's number
// may be another's.
func TestAProgramThatWasWaitedForIsNotSignalled(t *testing.T) {
	c, err := Program{Args: []string{"sh", "-c", "sleep 1000 & echo $!"}}.Start()
	if err != nil {
		t.Fatal(err)
	}
	for c.cmd.Process.Signal(syscall.Signal(0)) == nil {
		time.Sleep(time.Millisecond)
	}
	if err := c.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "ended before it was told to") {
		t.Errorf("error %v", err)
	}
	pid, err := strconv.Atoi(c.Said())
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		t.Fatal(err)
	}
	awaitEnd(pid)
}

func TestWhatAProgramLeavesBehindIsNoFailure(t *testing.T) {
	if _, err := Run(t.Context(), Program{Args: []string{"sh", "-c", "sleep 3 & exit 0"}}); err != nil {
		t.Error(err)
	}
}

func TestRunTellsHowAProgramEnded(t *testing.T) {
	var out bytes.Buffer
	for _, cpu := range []int{-1, 0} {
		out.Reset()
		c, err := Run(t.Context(), Program{Args: []string{"sh", "-c", "echo result; echo warning >&2"}, CPU: On(cpu), Stdout: &out})
		if err != nil || out.String() != "result\n" || c.Said() != "warning" || !c.State().Success() {
			t.Errorf("processor %d: %v, %q, %q", cpu, err, &out, c.Said())
		}
		_, err = Run(t.Context(), Program{Args: []string{"sh", "-c", "echo no such disk >&2; exit 3"}, CPU: On(cpu)})
		if err == nil || !strings.Contains(err.Error(), "no such disk") || !strings.Contains(err.Error(), "exit status 3") {
			t.Errorf("processor %d: %v", cpu, err)
		}
	}
	if _, err := Run(t.Context(), Program{Args: []string{"no-such-program"}}); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	c, err := Run(ctx, Program{Args: []string{"sleep", "1000"}})
	if err != enough || c.State() == nil {
		t.Errorf("error %v", err)
	}
}

// TestAProgramRunsWhereItIsTold: on the processor that is named, and on all where none is.
func TestAProgramRunsWhereItIsTold(t *testing.T) {
	allowed := func(cpu CPU) string {
		t.Helper()
		var out bytes.Buffer
		if _, err := Run(t.Context(), Program{Args: []string{"grep", "Cpus_allowed_list", "/proc/self/status"}, CPU: cpu, Stdout: &out}); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(strings.TrimPrefix(out.String(), "Cpus_allowed_list:"))
	}
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, own, _ := strings.Cut(string(text), "Cpus_allowed_list:")
	own, _, _ = strings.Cut(own, "\n")
	own = strings.TrimSpace(own)
	for _, c := range []struct {
		cpu  CPU
		want string
	}{{CPU{}, own}, {On(-1), own}, {On(0), "0"}} {
		if got := allowed(c.cpu); got != c.want {
			t.Errorf("%+v: on %q, want %q", c.cpu, got, c.want)
		}
	}
}

// TestAProgramThatEndsWithTheContextHasNotFailed: either end may be seen first.
func TestAProgramThatEndsWithTheContextHasNotFailed(t *testing.T) {
	c, err := Program{Args: []string{"true"}}.Start()
	if err != nil {
		t.Fatal(err)
	}
	<-c.Ended()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	for range 100 {
		if err := c.run(ctx); err != nil && err != enough {
			t.Fatal(err)
		}
	}
}

func TestOfMuchOutputTheEndIsKept(t *testing.T) {
	var o output
	for i := range 100_000 {
		fmt.Fprintf(&o, "%d\n", i)
	}
	if s := o.String(); len(s) > mostSaid || !strings.HasSuffix(s, "\n99998\n99999") {
		t.Errorf("%d bytes, ending in %q", len(s), s[max(len(s)-20, 0):])
	}
}
