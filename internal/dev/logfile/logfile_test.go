package logfile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"vdev/devsw/line"
	"vdev/internal/test/hangfs"
	"vdev/internal/test/linetest"
)

func TestMain(m *testing.M) {
	retry = 5 * time.Millisecond
	goleak.VerifyTestMain(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens a log file and adds it to the guest's line.
func open(t testing.TB, g *linetest.Guest, conf Config) *File {
	t.Helper()
	f, err := Open(conf)
	must(t, err)
	must(t, g.Line.Add(f, "log", line.Watcher))
	return f
}

// drain waits until the file has all that was written.
func drain(t testing.TB, g *linetest.Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, g.Line.Drain(ctx))
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func TestAppendsWhatTheGuestWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	must(t, os.WriteFile(path, []byte("before\n"), 0o600))
	g := linetest.New(t, line.Config{})
	f := open(t, g, Config{Path: path})
	want := "before\n"
	for i := range 1000 {
		text := fmt.Sprintf("line %d\r\n\x00\xff", i)
		g.Write(text)
		want += text
	}
	drain(t, g)
	if got := read(t, path); got != want {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
	if s := f.Status(); s.Size != int64(len(want)) || s.Failures != 0 || s.Failing {
		t.Errorf("%+v", s)
	}
	if g.Attached() {
		t.Error("a log is somebody who is attached")
	}
}

// clock gives a new second each time.
func clock() func() time.Time {
	at := time.Date(2026, 11, 30, 17, 0, 0, 0, time.FixedZone("", 3600))
	return func() time.Time {
		at = at.Add(time.Second)
		return at
	}
}

func TestTimesStandBeforeLines(t *testing.T) {
	for _, tt := range []struct {
		name   string
		pieces []string
		want   string
	}{
		{"in pieces", []string{"a", "b", "\n", "c\nd", "\n"}, "1 ab\n2 c\n3 d\n"},
		{"CR LF", []string{"a\r\n", "b\r", "\n", "c\rd\r\r\n", "\r\n", "\n"}, "1 a\n2 b\n3 c\rd\r\n4 \n5 \n"},
		{"an end without a new line", []string{"a\nb"}, "1 a\n2 b"},
		{"CR at the end comes later", []string{"a\r", "b"}, "1 a\rb"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := stamper{on: true, now: clock()}
			var b []byte
			for _, p := range tt.pieces {
				var n int
				if b, n = s.append(b, []byte(p)); n != len(p) {
					t.Errorf("%q: %d", p, n)
				}
			}
			want := tt.want
			for i := 1; i < 10; i++ {
				want = strings.ReplaceAll(want, fmt.Sprintf("%d ", i), fmt.Sprintf("2026-11-30T17:00:0%d.000+01:00 ", i))
			}
			if string(b) != want {
				t.Errorf("%q, want %q", b, want)
			}
		})
	}
}

func TestNoChunkIsMuchLargerThanItMayBe(t *testing.T) {
	s := stamper{on: true, now: clock()}
	left := []byte(strings.Repeat("\n", 100<<10))
	var all int
	for len(left) > 0 {
		b, n := s.append(nil, left)
		if n == 0 || len(b) > chunk+len(layout) {
			t.Fatalf("%d bytes were taken, %d are to be written", n, len(b))
		}
		left, all = left[n:], all+n
	}
	if all != 100<<10 {
		t.Errorf("%d bytes", all)
	}
}

func TestTimesInAFileThatEndsWithinALine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	must(t, os.WriteFile(path, []byte("half"), 0o600))
	g := linetest.New(t, line.Config{})
	open(t, g, Config{Path: path, Timestamps: true})
	g.Write("one\r\ntwo\r\n")
	drain(t, g)
	lines := strings.Split(read(t, path), "\n")
	if len(lines) != 4 || lines[0] != "half" || !strings.HasSuffix(lines[1], " one") || !strings.HasSuffix(lines[2], " two") {
		t.Fatalf("%q", lines)
	}
	for _, l := range lines[1:3] {
		at, _, _ := strings.Cut(l, " ")
		if when, err := time.Parse(time.RFC3339, at); err != nil || time.Since(when).Abs() > time.Hour {
			t.Errorf("%q: %v", l, err)
		}
	}
}

// joined reads the files of a log, the oldest first.
func joined(t testing.TB, path string) (all string, sizes []int) {
	t.Helper()
	for i := 20; i >= 0; i-- {
		name := path
		if i > 0 {
			name += fmt.Sprintf(".%d", i)
		}
		b, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		must(t, err)
		all += string(b)
		sizes = append(sizes, len(b))
	}
	return all, sizes
}

func TestRotationLosesNothingAndKeepsTheSize(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		must(t, err)
		path := filepath.Join(dir, "log")
		most := rapid.Int64Range(1, 200).Draw(rt, "max-size")
		files := rapid.IntRange(1, 6).Draw(rt, "max-files")
		f, err := Open(Config{Path: path, MaxSize: most, MaxFiles: files})
		must(t, err)
		var want string
		for range rapid.IntRange(1, 40).Draw(rt, "writes") {
			text := rapid.StringOfN(rapid.RuneFrom([]rune("ab\n")), 0, 100, -1).Draw(rt, "text")
			for rest := []byte(text); len(rest) > 0; {
				n, err := f.Writev([][]byte{rest})
				must(t, err)
				rest = rest[n:]
			}
			want += text
		}
		f.Close()
		<-f.Ended()
		got, sizes := joined(t, path)
		if !strings.HasSuffix(want, got) || len(got) < len(want) && len(sizes) < files {
			rt.Errorf("%d files have %q, which is not the end of %q", len(sizes), got, want)
		}
		if len(sizes) > files {
			rt.Errorf("%d files, at most %d", len(sizes), files)
		}
		for _, n := range sizes {
			if int64(n) > most {
				rt.Errorf("sizes %v, at most %d", sizes, most)
			}
		}
	})
}

func TestCutsBetweenLines(t *testing.T) {
	for _, tt := range []struct {
		text       string
		size, most int64
		part       bool
		want       int
	}{
		{"abc\n", 6, 10, true, 4}, // there is room
		{"a\nbcd\n", 6, 10, true, 2},
		{"abcdefg\n", 6, 10, false, 0}, // a line of its own file
		{"abcdefg\n", 6, 10, true, 4},  // a line that has begun
		{"abcdefg\n", 0, 5, false, 5},  // a line that no file has room for
		{"a\n", 10, 10, true, 0},
		{"a\n", 20, 10, false, 0}, // a file that was there
	} {
		if got := cut([]byte(tt.text), tt.size, tt.most, tt.part); got != tt.want {
			t.Errorf("%+v: %d", tt, got)
		}
	}
}

func TestRotationUnderWritesOfALine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	g := linetest.New(t, line.Config{Overflow: line.Wait, Scrollback: 1 << 20})
	f, err := Open(Config{Path: path, MaxSize: 64 << 10, MaxFiles: 20})
	must(t, err)
	must(t, g.Line.Add(f, "file", line.Main))
	var want strings.Builder
	for i := range 20000 {
		text := fmt.Sprintf("%d %s\n", i, strings.Repeat("x", rand.IntN(50)))
		g.Write(text)
		want.WriteString(text)
		if i%5000 == 0 {
			f.Reopen()
		}
	}
	drain(t, g)
	got, sizes := joined(t, path)
	if got != want.String() || len(sizes) < 5 {
		t.Errorf("%d bytes in files of %v, want %d", len(got), sizes, want.Len())
	}
}

func TestReopenAfterARename(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	g := linetest.New(t, line.Config{})
	f := open(t, g, Config{Path: path})
	g.Write("one\n")
	drain(t, g)
	must(t, os.Rename(path, path+".old"))
	g.Write("two\n")
	drain(t, g)
	f.Reopen()
	await(t, "the file is there", func() bool { _, err := os.Stat(path); return err == nil })
	g.Write("three\n")
	drain(t, g)
	if old, now := read(t, path+".old"), read(t, path); old != "one\ntwo\n" || now != "three\n" {
		t.Errorf("%q, %q", old, now)
	}
}

func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	for range 6000 {
		if so() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("still not so: %s", what)
}

// told collects what a File says.
type told struct {
	mu   sync.Mutex
	said []error
}

func (l *told) log(_ string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = append(l.said, err)
}

func (l *told) all() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]error(nil), l.said...)
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("vdev-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("tmpfs: %v", err)
	}
	defer func() { must(t, syscall.Unmount(dir, 0)) }()
	ballast, path := filepath.Join(dir, "ballast"), filepath.Join(dir, "log")
	must(t, os.WriteFile(ballast, make([]byte, 56<<10), 0o600))
	g := linetest.New(t, line.Config{})
	var l told
	f := open(t, g, Config{Path: path, Log: l.log})
	want := strings.Repeat("0123456789abcde\n", 1<<10)
	for i := range len(want) / 16 {
		g.Write(want[16*i : 16*i+16])
	}
	await(t, "it fails, again and again", func() bool { s := f.Status(); return s.Failing && s.Failures > 3 })
	if said := l.all(); len(said) != 1 || !errors.Is(said[0], syscall.ENOSPC) {
		t.Errorf("told %v", said)
	}
	must(t, os.Remove(ballast))
	drain(t, g)
	if got := read(t, path); got != want {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
	if said := l.all(); len(said) != 2 || said[1] != nil || f.Status().Failing {
		t.Errorf("told %v, %+v", said, f.Status())
	}
	f.Close()
	<-f.Ended() // or the file system is in use
}

func TestFileSystemThatHangsHoldsUpNobody(t *testing.T) {
	fs, dir, point := hangfs.New(t, hangfs.Config{})
	g := linetest.New(t, line.Config{Scrollback: 64 << 10})
	// What is made in the file system itself is not held.
	must(t, os.WriteFile(filepath.Join(dir, "log"), nil, 0o600))
	f := open(t, g, Config{Path: filepath.Join(point, "log")})
	fs.Hold(hangfs.Write)
	g.Write("first\n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, fs.Await(ctx, hangfs.Write, 1))
	for range 100 {
		if n := g.TryWrite(strings.Repeat("x", 4096)); n != 4096 {
			t.Fatalf("the guest's write of 4096 bytes took %d", n)
		}
	}
	g.Line.Close()
	must(t, g.Line.Wait(ctx)) // with the write still in the host
	if fs.Waiting(hangfs.Write) != 1 {
		t.Error("the write is over: this has shown nothing")
	}
	fs.Release(hangfs.Write)
	<-f.Ended()
	if got := read(t, filepath.Join(dir, "log")); got != "first\n" {
		t.Errorf("%q", got)
	}
}

// TestFileSystemThatIsAlwaysInterrupted: a server that answers EINTR by itself fails like others.
func TestFileSystemThatIsAlwaysInterrupted(t *testing.T) {
	fs, dir, point := hangfs.New(t, hangfs.Config{})
	g := linetest.New(t, line.Config{})
	must(t, os.WriteFile(filepath.Join(dir, "log"), nil, 0o600))
	f := open(t, g, Config{Path: filepath.Join(point, "log")})
	fs.Fail(hangfs.Write, syscall.EINTR)
	g.Write("first\n")
	await(t, "it fails", func() bool { return f.Status().Failing })
	fs.Fail(hangfs.Write, 0)
	drain(t, g)
	if got := read(t, filepath.Join(dir, "log")); got != "first\n" {
		t.Errorf("%q", got)
	}
	f.Close()
	<-f.Ended()
}

// TestReopenWhileItFails: what could not be written goes to the file that is at the path by then.
func TestReopenWhileItFails(t *testing.T) {
	fs, dir, point := hangfs.New(t, hangfs.Config{})
	g := linetest.New(t, line.Config{})
	// What is made in the file system itself does not fail.
	must(t, os.WriteFile(filepath.Join(dir, "log"), nil, 0o600))
	path := filepath.Join(point, "log")
	f := open(t, g, Config{Path: path})
	fs.Fail(hangfs.Write, syscall.EIO)
	g.Write("text\n")
	await(t, "it fails", func() bool { return f.Status().Failing })
	must(t, os.Rename(path, path+".old"))
	f.Reopen()
	await(t, "there is a file", func() bool { _, err := os.Lstat(path); return err == nil })
	fs.Fail(hangfs.Write, 0)
	drain(t, g)
	if old, now := read(t, filepath.Join(dir, "log.old")), read(t, filepath.Join(dir, "log")); old != "" || now != "text\n" {
		t.Errorf("%q, %q", old, now)
	}
	f.Close()
	<-f.Ended()
}

// TestALineThatHasBegunStaysInItsFile, as far as that has room, and one that has not begins the
// next.
func TestALineThatHasBegunStaysInItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := Open(Config{Path: path, MaxSize: 10})
	must(t, err)
	for _, text := range []string{"aaa", "bbbbbbbb\n", "ccccccccc\n"} {
		n, err := f.Writev([][]byte{[]byte(text)})
		must(t, err)
		if n != len(text) {
			t.Errorf("%q: %d bytes", text, n)
		}
	}
	f.Close()
	<-f.Ended()
	for name, want := range map[string]string{path + ".2": "aaabbbbbbb", path + ".1": "b\n", path: "ccccccccc\n"} {
		if got := read(t, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestOpenTellsWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	for name, conf := range map[string]Config{
		"no such file or directory": {Path: filepath.Join(dir, "no", "log")},
		"is a directory":            {Path: dir},
		"no regular file":           {Path: "/dev/null", MaxSize: 1000},
	} {
		if _, err := Open(conf); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "log file "+conf.Path) {
			t.Errorf("%+v: %v", conf, err)
		}
	}
	// A FIFO that nobody reads is no reason to wait.
	fifo := filepath.Join(dir, "fifo")
	must(t, syscall.Mkfifo(fifo, 0o600))
	f, err := Open(Config{Path: fifo})
	must(t, err)
	f.Close()
	<-f.Ended()
}

func TestNoDescriptorIsLeft(t *testing.T) {
	dir := t.TempDir()
	before := descriptors(t)
	for i := range 50 {
		f, err := Open(Config{Path: filepath.Join(dir, fmt.Sprint(i)), MaxSize: 10})
		must(t, err)
		for range 5 {
			_, err := f.Writev([][]byte{[]byte("0123456789")})
			must(t, err)
			f.Reopen()
		}
		f.Close()
		<-f.Ended()
	}
	if n := descriptors(t); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}
