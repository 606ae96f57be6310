package qemunbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/devsw"
	"vdev/internal/test/halt"
)

// serveEnv makes this test binary serve the image that the variable names until it is killed.
const serveEnv = "VDEV_QEMUNBD_SERVE"

// recordsEnv names the folder of its records.
const recordsEnv = "VDEV_QEMUNBD_RECORDS"

func TestMain(m *testing.M) {
	Witness()
	if file := os.Getenv(serveEnv); file != "" {
		s, err := New(Config{File: file, Format: "qcow2", Records: os.Getenv(recordsEnv)})
		if err == nil {
			_, err = s.Start(context.Background())
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		pid, _ := s.running()
		fmt.Println(pid, s.holder, s.socket.Int())
		select {}
	}
	goleak.VerifyTestMain(m)
}

// makeImage makes an image of a format.
func makeImage(t *testing.T, format, size string) string {
	t.Helper()
	for _, program := range []string{"qemu-img", "qemu-nbd"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	file := filepath.Join(t.TempDir(), "disk."+format)
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", format, file, size).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	return file
}

// newServer makes a Server for the length of the test.
func newServer(t *testing.T, conf Config) *Server {
	t.Helper()
	if conf.Log == nil {
		conf.Log = func(text string) { t.Log("log:", text) }
	}
	s, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func start(t *testing.T, s *Server) uint64 {
	t.Helper()
	generation, err := s.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return generation
}

// pid is the process that serves, which ended tells the end of.
func (s *Server) running() (pid int, ended <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.p == nil {
		return 0, nil
	}
	return s.p.cmd.Process.Pid, s.p.ended
}

// inUse tells whether QEMU's tools find the image in use.
func inUse(t *testing.T, file string) bool {
	t.Helper()
	out, err := exec.Command("qemu-img", "info", file).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "lock") {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	return err != nil
}

func TestTheImageIsLockedWhileItIsServedOnly(t *testing.T) {
	file := makeImage(t, "qcow2", "16M")
	s := newServer(t, Config{File: file, Format: "qcow2", Discard: true})
	if inUse(t, file) {
		t.Error("the image is in use before Start")
	}
	first := start(t, s)
	if !inUse(t, file) {
		t.Error("the image is not in use after Start")
	}
	pid, _ := s.running()
	if again := start(t, s); again != first {
		t.Errorf("generation %d, then %d", first, again)
	}
	if now, _ := s.running(); now != pid {
		t.Errorf("process %d, then %d: Start is to leave it alone", pid, now)
	}
	s.Stop()
	if inUse(t, file) {
		t.Error("the image is in use after Stop")
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the program is still there: %v", err)
	}
	s.Stop()
	if again := start(t, s); again != first {
		t.Errorf("generation %d, after a Stop %d", first, again)
	}
}

func TestManyStartOneProgram(t *testing.T) {
	s := newServer(t, Config{File: makeImage(t, "qcow2", "16M"), Format: "qcow2"})
	var all sync.WaitGroup
	pids := make([]int, 8)
	for i := range pids {
		all.Go(func() {
			if _, err := s.Start(t.Context()); err != nil {
				t.Error(err)
			}
			pids[i], _ = s.running()
		})
	}
	all.Wait()
	for _, pid := range pids {
		if pid != pids[0] || pid == 0 {
			t.Fatalf("processes %v: want one", pids)
		}
	}
}

func TestADeathIsAnotherGenerationWhereItMayLoseSomething(t *testing.T) {
	for name, c := range map[string]struct {
		conf  Config
		sig   syscall.Signal
		loses bool
	}{
		"qcow2 killed":     {Config{Format: "qcow2"}, syscall.SIGKILL, true},
		"qcow2 terminated": {Config{Format: "qcow2"}, syscall.SIGTERM, false},
		"raw killed":       {Config{Format: Raw}, syscall.SIGKILL, false},
		"snapshot killed":  {Config{Format: Raw, Snapshot: true}, syscall.SIGKILL, true},
	} {
		t.Run(name, func(t *testing.T) {
			c.conf.File = makeImage(t, c.conf.Format, "16M")
			s := newServer(t, c.conf)
			first := start(t, s)
			pid, ended := s.running()
			if err := syscall.Kill(pid, c.sig); err != nil {
				t.Fatal(err)
			}
			<-ended
			if second := start(t, s); second != first != c.loses {
				t.Errorf("generation %d, then %d", first, second)
			}
			if now, _ := s.running(); now == pid {
				t.Error("it was not started again")
			}
		})
	}
}

func TestAnImageInUseIsWaitedForAndSaidSo(t *testing.T) {
	file := makeImage(t, "qcow2", "16M")
	holder := newServer(t, Config{File: file, Format: "qcow2"})
	start(t, holder)
	s := newServer(t, Config{File: file, Format: "qcow2"})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := s.Start(ctx)
		failed <- err
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("Start: %v, want to be cancelled", err)
	}
	s.Stop()

	go func() {
		_, err := s.Start(t.Context())
		failed <- err
	}()
	for pid := 0; pid == 0; pid, _ = s.running() {
		time.Sleep(time.Millisecond) // until it has begun to try
	}
	holder.Stop()
	if err := <-failed; err != nil {
		t.Errorf("Start, when the image is free: %v", err)
	}
}

func TestAnImageThatStaysInUseIsAnError(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for an image that stays in use")
	}
	file := makeImage(t, "qcow2", "16M")
	start(t, newServer(t, Config{File: file, Format: "qcow2"}))
	_, err := newServer(t, Config{File: file, Format: "qcow2"}).Start(t.Context())
	if !errors.Is(err, ErrInUse) || errors.Is(err, devsw.EINVAL) || !strings.Contains(err.Error(), file+": is in use by another process (") {
		t.Errorf("Start: %v; want that it is in use, which may change", err)
	}
}

func TestAnIncomingGuestsImageMayBeInUse(t *testing.T) {
	file := makeImage(t, "qcow2", "24M")
	holder := newServer(t, Config{File: file, Format: "qcow2"})
	start(t, holder)
	told := make(chan error, 1)
	s := newServer(t, Config{File: file, Format: "qcow2", InUse: func(err error) { told <- err }})
	start(t, s)
	if err := <-told; !errors.Is(err, ErrInUse) {
		t.Errorf("told of %v", err)
	}
	if size := servedSize(t, s); size != 24<<20 {
		t.Errorf("the size is %d", size)
	}
	s.Stop()
	holder.Stop()
	start(t, s)
	if !inUse(t, file) {
		t.Error("the image itself is not served after Stop")
	}
}

// servedSize tells the size in bytes of what is served.
func servedSize(t *testing.T, s *Server) int64 {
	t.Helper()
	socket := strings.Replace(s.path(), "self", strconv.Itoa(os.Getpid()), 1)
	out, err := exec.Command("qemu-img", "info", "--output=json", "nbd+unix:///?socket="+socket).Output()
	if err != nil {
		t.Fatal(err)
	}
	size, err := virtualSize(out)
	if err != nil {
		t.Fatal(err)
	}
	return size
}

func TestErrorsAreThePrograms(t *testing.T) {
	notAnImage := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := os.WriteFile(notAnImage, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	makeImage(t, Raw, "1M")
	_, err := newServer(t, Config{File: notAnImage, Format: "vdi"}).Start(t.Context())
	if !errors.Is(err, devsw.EINVAL) || !strings.Contains(err.Error(), "not in VDI format") {
		t.Errorf("Start: %v", err)
	}
	for want, conf := range map[string]Config{
		"a file is missing":          {Format: Raw},
		"the format is missing":      {File: notAnImage},
		"must be off, on or unmap":   {File: notAnImage, Format: Raw, DetectZeroes: "yes"},
		"needs discard":              {File: notAnImage, Format: Raw, DetectZeroes: "unmap"},
		"no such file":               {File: notAnImage + "x", Format: Raw},
		"qemu-utils":                 {File: notAnImage, Format: Raw, Program: "qemu-nbd-that-nobody-has"},
		"snapshot of an image that ": {File: notAnImage, Format: Raw, Snapshot: true, InUse: func(error) {}},
		"snapshot of " + notAnImage:  {File: notAnImage, Format: "vdi", Snapshot: true},
	} {
		if _, err := New(conf); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New(%+v): %v; want %q", conf, err, want)
		}
	}
}

func TestNothingIsLeftInTheTemporaryFolder(t *testing.T) {
	file := makeImage(t, "qcow2", "16M")
	tmp := filepath.Join(t.TempDir(), strings.Repeat("a-long-name-", 12))
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", tmp)
	start(t, newServer(t, Config{File: file, Format: "qcow2", Snapshot: true}))
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestASnapshotOfAnImageThatWasChangedIsOfNoUse(t *testing.T) {
	file := makeImage(t, Raw, "16M")
	s := newServer(t, Config{File: file, Format: Raw, Snapshot: true})
	start(t, s)
	s.Stop()
	start(t, s)
	s.Stop()
	if err := os.Truncate(file, 8<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "was changed") {
		t.Errorf("Start: %v", err)
	}
}

func TestKillEndsAProgramThatDoesNothing(t *testing.T) {
	s := newServer(t, Config{File: makeImage(t, "qcow2", "16M"), Format: "qcow2"})
	start(t, s)
	pid, _ := s.running()
	halt.Process(t, pid)
	stopped := make(chan struct{})
	go func() { s.Stop(); close(stopped) }()
	s.Kill()
	<-stopped
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the program is still there: %v", err)
	}
}

func TestAProgramThatKeepsSomethingIsNotKilledAtTheEnd(t *testing.T) {
	s, err := New(Config{File: makeImage(t, "qcow2", "16M"), Format: "qcow2"})
	if err != nil {
		t.Fatal(err)
	}
	start(t, s)
	pid, ended := s.running()
	halt.Process(t, pid)
	s.End()
	killed := make(chan struct{})
	go func() { s.Kill(); close(killed) }()
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "still writes what it has answered") {
		t.Errorf("Close: %v", err)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Errorf("it was killed: %v", err)
	}
	<-ended
	<-killed
	if status := s.p; status != nil {
		t.Errorf("Kill has not seen the end: %+v", status)
	}
}

func TestCloseEndsAProgramThatDoesNothing(t *testing.T) {
	file := makeImage(t, "qcow2", "16M")
	s, err := New(Config{File: file, Format: "qcow2", Snapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	start(t, s)
	pid, _ := s.running()
	halt.Process(t, pid)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the program is still there: %v", err)
	}
	if _, err := s.Start(t.Context()); err == nil {
		t.Error("Start after Close gave no error")
	}
}

func TestTheProgramEndsWithThisProcess(t *testing.T) {
	file := makeImage(t, "qcow2", "16M")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serveEnv+"="+file)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// It is started when the other one has given the image up.
	start(t, newServer(t, Config{File: file, Format: "qcow2"}))
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
}
