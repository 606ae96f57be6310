package guesttests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"

	"vdev/guest-tests/internal/pattern"
)

// terminal is what stands at the host's end of a console's port: a client of its socket, or a
// program on its pseudo terminal.
type terminal struct {
	line interface {
		io.ReadWriteCloser
		SetWriteDeadline(time.Time) error
	}
	tty *os.File     // line, where it is a terminal
	ran <-chan error // how a program has ended that has line for its terminal; nil: there is none

	mu      sync.Mutex
	shown   []byte // what has come while there was no work
	seen    int    // of it, by shows
	came    int64  // bytes, in all
	stopped bool   // nothing is read
	work    *lineJob
	ended   error         // of reading; nil while it goes on
	changed chan struct{} // closed, and replaced, when anything above changes
}

// lineJob takes what comes to a terminal, and sends something meanwhile.
type lineJob struct {
	take func(p []byte) (done bool, err error)
	send func() error // nil: nothing is sent
	sent chan error   // what send has returned
	came chan error   // what take has: once
	over bool         // came has it

	follower *pattern.Follower // of a flow
	blocks   uint64            // of a flow, that were sent; valid once sent is
	quit     chan struct{}     // of a flow
}

func (l *terminal) changeLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *terminal) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	l.changeLocked()
}

// until waits for a condition, which is asked with mu held.
func (l *terminal) until(ctx context.Context, ok func() bool) error {
	for {
		l.mu.Lock()
		fine, changed, ended := ok(), l.changed, l.ended
		l.mu.Unlock()
		switch {
		case fine:
			return nil
		case ended != nil:
			return fmt.Errorf("the line has ended: %w", ended)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (l *terminal) read() {
	buf := make([]byte, 64<<10)
	for {
		if l.until(context.Background(), func() bool { return !l.stopped }) != nil {
			return
		}
		n, err := l.line.Read(buf)
		l.change(func() {
			if n > 0 {
				l.takeLocked(buf[:n])
			}
			l.ended = err
		})
		if err != nil {
			return
		}
	}
}

func (l *terminal) takeLocked(p []byte) {
	l.came += int64(len(p))
	if l.work == nil || l.work.over {
		l.shown = append(l.shown, p...)
		return
	}
	if done, err := l.work.take(p); done || err != nil {
		l.work.over = true
		l.work.came <- err
	}
}

func (l *terminal) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%q", l.shown[max(0, len(l.shown)-n):])
}

// close hangs up. It may be called again.
func (l *terminal) close() {
	l.line.Close()
	l.change(func() { l.ended, l.stopped = net.ErrClosed, false })
}

const terminalUsage = `usage: terminal NAME open PATH [COLSxROWS] | run COLSxROWS PROGRAM ARG... | ended | type TEXT | shows REGEXP | busy B | stop | go | size COLSxROWS | close |
	stream [send=B] [receive=B] [seed=N] | flow [seed=N] | repeats N FILE | finish [JOB]`

// useTerminal is "terminal NAME VERB ARG...".
func useTerminal(w *world, args []string) (string, error) {
	if len(args) < 2 {
		return "", errors.New(terminalUsage)
	}
	name, verb, args := args[0], args[1], args[2:]
	if verb == "open" && (len(args) == 1 || len(args) == 2) {
		if w.lines[name] != nil {
			w.lines[name].close()
		}
		l, err := openTerminal(filepath.Join(w.dir, args[0]))
		if err != nil {
			return "", err
		}
		w.lines[name] = l
		if len(args) == 1 {
			return "", nil
		}
		return "", l.resize(args[1])
	}
	if verb == "run" && len(args) > 1 {
		l, err := w.runOn(args[0], args[1:])
		if err == nil {
			w.lines[name] = l
		}
		return "", err
	}
	l := w.lines[name]
	if l == nil {
		return "", fmt.Errorf("no terminal %s is open", name)
	}
	ctx, cancel := w.context()
	defer cancel()
	switch {
	case verb == "type":
		text, err := strconv.Unquote(`"` + strings.ReplaceAll(strings.Join(args, " "), `"`, `\"`) + `"`)
		if err != nil {
			return "", fmt.Errorf("type: %w", err)
		}
		_, err = io.WriteString(l.line, text)
		return "", err
	case verb == "shows":
		re, err := regexp.Compile("(?m)" + strings.Join(args, " "))
		if err != nil {
			return "", err
		}
		err = l.until(ctx, func() bool {
			m := re.FindIndex(l.shown[l.seen:])
			if m != nil {
				l.seen += m[1]
			}
			return m != nil
		})
		if err != nil {
			return "", fmt.Errorf("%s does not show %s: %w", name, re, err)
		}
		return "", nil
	case verb == "busy" && len(args) == 1:
		n, err := bytesOf(args[0])
		if err != nil {
			return "", err
		}
		l.mu.Lock()
		enough := l.came + n
		l.mu.Unlock()
		return "", l.until(ctx, func() bool { return l.came >= enough })
	case verb == "stop" && len(args) == 0:
		l.change(func() { l.stopped = true })
		return "", nil
	case verb == "go" && len(args) == 0:
		l.change(func() { l.stopped = false })
		return "", nil
	case verb == "size" && len(args) == 1:
		return "", l.resize(args[0])
	case verb == "close" && len(args) == 0:
		l.close()
		return "", nil
	case verb == "ended" && l.ran != nil:
		select {
		case err := <-l.ran:
			return "", err
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	case verb == "stream":
		return "", l.stream(args)
	case verb == "flow":
		return "", l.flow(args)
	case verb == "repeats" && len(args) == 2:
		return "", l.repeats(args[0], filepath.Join(w.dir, args[1]))
	case verb == "finish" && len(args) <= 1:
		return l.finish(ctx, w, args)
	}
	return "", errors.New(terminalUsage)
}

// openTerminal connects to a socket, or opens a terminal, raw.
func openTerminal(path string) (*terminal, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	l := &terminal{changed: make(chan struct{})}
	if st.Mode()&os.ModeSocket != 0 {
		c, err := dialUnix(path)
		if err != nil {
			return nil, err
		}
		l.line = c
	} else {
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			return nil, err
		}
		l.line, l.tty = f, f
		if out, err := exec.Command("stty", "-F", path, "raw", "-echo").CombinedOutput(); err != nil {
			f.Close()
			return nil, fmt.Errorf("stty: %w: %s", err, out)
		}
	}
	go l.read()
	return l, nil
}

// runOn starts a program on a terminal of that size, which is its controlling one. It is killed
// when the terminal is closed.
func (w *world) runOn(size string, words []string) (*terminal, error) {
	path := words[0]
	if !strings.Contains(path, "/") {
		var err error
		if path, err = w.lookPath(path); err != nil {
			return nil, err
		}
	}
	var s pty.Winsize
	if _, err := fmt.Sscanf(size, "%dx%d", &s.Cols, &s.Rows); err != nil {
		return nil, fmt.Errorf("size %q: %w", size, err)
	}
	cmd := exec.Command(path, words[1:]...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), "TERM=linux", "PATH="+strings.Join(w.path, ":"), "TMPDIR="+w.dir)
	master, err := pty.StartWithSize(cmd, &s)
	if err != nil {
		return nil, err
	}
	ran := make(chan error, 1)
	go func() { ran <- cmd.Wait() }()
	l := &terminal{line: master, tty: master, ran: ran, changed: make(chan struct{})}
	go l.read()
	return l, nil
}

func dialUnix(path string) (*net.UnixConn, error) {
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
}

func (l *terminal) resize(size string) error {
	var s pty.Winsize
	switch _, err := fmt.Sscanf(size, "%dx%d", &s.Cols, &s.Rows); {
	case err != nil:
		return fmt.Errorf("size %q: must be COLSxROWS: %w", size, err)
	case l.tty == nil:
		return errors.New("a socket has no size")
	}
	tty := l.tty
	if l.ran == nil {
		// Setsize makes a descriptor block. A read of this one is to end when it is closed.
		var err error
		if tty, err = os.OpenFile(l.tty.Name(), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
			return err
		}
		defer tty.Close()
	}
	return pty.Setsize(tty, &s)
}

// begin has the terminal work.
func (l *terminal) begin(w *lineJob) error {
	w.sent, w.came, w.quit = make(chan error, 1), make(chan error, 1), make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.work != nil {
		return errors.New("the terminal works already")
	}
	if err := l.line.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	l.work = w
	go func() { w.sent <- w.send() }()
	return nil
}

// lineOptions reads options of the form KEY=NUMBER.
func lineOptions(args []string, known ...string) (map[string]int64, error) {
	opts := map[string]int64{"seed": 1}
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		n, err := bytesOf(value)
		if err != nil || !slices.Contains(known, key) {
			return nil, fmt.Errorf("%q: must be one of %v, with a number", a, known)
		}
		opts[key] = n
	}
	return opts, nil
}

// stream sends the pattern of seed+1, and expects the one of seed: the agent's stream, from the
// other side.
func (l *terminal) stream(args []string) error {
	opts, err := lineOptions(args, "send", "receive", "seed")
	if err != nil {
		return err
	}
	seed, send, receive := uint64(opts["seed"]), opts["send"], opts["receive"]
	w := new(lineJob)
	var off int64
	var rest []byte
	w.take = func(p []byte) (bool, error) {
		rest = append(rest, p...)
		n := len(rest) &^ (pattern.BlockSize - 1)
		if off+int64(len(rest)) > receive {
			return false, fmt.Errorf("more than %d bytes have come", receive)
		}
		err := pattern.Verify(rest[:n], seed, off)
		off += int64(n)
		rest = append(rest[:0], rest[n:]...)
		return off == receive, err
	}
	w.send = func() error {
		buf := make([]byte, 64<<10)
		for off := int64(0); off < send; off += int64(len(buf)) {
			buf = buf[:min(int64(len(buf)), send-off)]
			pattern.Fill(buf, seed+1, off)
			if _, err := l.line.Write(buf); err != nil {
				return fmt.Errorf("sent %d bytes: %w", off, err)
			}
		}
		return nil
	}
	if err := l.begin(w); err != nil || receive > 0 {
		return err
	}
	l.change(func() { w.over = true; w.came <- nil })
	return nil
}

// repeats expects the contents of a file N times.
func (l *terminal) repeats(times, file string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	want, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	at, round := 0, 0
	take := func(p []byte) (bool, error) {
		for len(p) > 0 {
			k := min(len(p), len(want)-at)
			if !bytes.Equal(p[:k], want[at:at+k]) {
				return false, fmt.Errorf("round %d, from byte %d on: %q, want %q", round+1, at, p[:min(k, 80)], want[at:min(at+80, len(want))])
			}
			if at, p = at+k, p[k:]; at == len(want) {
				at, round = 0, round+1
			}
			if round == n && len(p) > 0 {
				return false, fmt.Errorf("more has come: %q", p[:min(len(p), 80)])
			}
		}
		return round == n, nil
	}
	return l.begin(&lineJob{take: take, send: func() error { return nil }})
}

// flow sends the pattern of seed without end, and looks at what comes: the agent's flow, from the
// other side.
func (l *terminal) flow(args []string) error {
	opts, err := lineOptions(args, "seed")
	if err != nil {
		return err
	}
	seed := uint64(opts["seed"])
	w := &lineJob{follower: new(pattern.Follower)}
	w.take = func(p []byte) (bool, error) { w.follower.Take(p); return false, nil }
	w.send = func() error {
		buf := make([]byte, 32<<10)
		for {
			select {
			case <-w.quit:
				return nil
			default:
			}
			pattern.Fill(buf, seed, int64(w.blocks*pattern.BlockSize))
			n, err := l.line.Write(buf)
			w.blocks += uint64(n / pattern.BlockSize)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
	return l.begin(w)
}

// finish waits for the end of stream and repeats. A flow it ends, with the one of the agent that
// was started as job, and compares what both have sent and received.
func (l *terminal) finish(ctx context.Context, w *world, args []string) (string, error) {
	l.mu.Lock()
	job := l.work
	l.mu.Unlock()
	if job == nil || (len(args) == 1) != (job.follower != nil) {
		return "", errors.New(terminalUsage)
	}
	defer l.change(func() { l.work = nil })
	if job.follower == nil {
		for _, c := range []chan error{job.came, job.sent} {
			select {
			case err := <-c:
				if err != nil {
					return "", err
				}
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
		}
		return "", nil
	}
	text, err := w.guest("finish " + args[0])
	if err != nil {
		return "", err
	}
	their, err := parseFlow(text)
	if err != nil {
		return "", err
	}
	close(job.quit)
	if err := l.line.SetWriteDeadline(time.Now()); err != nil {
		return "", err
	}
	if err := <-job.sent; err != nil {
		return "", err
	}
	// All that the guest has sent since it last opened the port comes.
	err = l.until(ctx, func() bool {
		runs, last := job.follower.Runs, their[len(their)-1]
		return last.sent.End == 0 || len(runs) > 0 && runs[len(runs)-1] == last.sent
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		return "", fmt.Errorf("the guest has sent\n%swhat came is %v: %w", text, job.follower, err)
	}
	return checkFlow(job.follower, their)
}

// opened is what the agent's flow tells of each time that it has opened the port.
type opened struct {
	sent     pattern.Run
	received []pattern.Run
	skipped  int64
}

var flowLine = regexp.MustCompile(`(?m)^sent (\S+) received (.*?)(and \d+ more )?skipped=(\d+)$`)

func parseFlow(text string) (all []opened, err error) {
	run := func(s string) (r pattern.Run) {
		if _, e := fmt.Sscanf(s, "%d:%d-%d", &r.Seed, &r.First, &r.End); e != nil {
			err = fmt.Errorf("the agent has said %q: %w", text, e)
		}
		return r
	}
	for _, m := range flowLine.FindAllStringSubmatch(text, -1) {
		o := opened{sent: run(m[1])}
		for s := range strings.FieldsSeq(m[2]) {
			o.received = append(o.received, run(s))
		}
		o.skipped, _ = strconv.ParseInt(m[4], 10, 64)
		all = append(all, o)
	}
	if len(all) == 0 && err == nil {
		err = fmt.Errorf("the agent has said %q", text)
	}
	return all, err
}

// checkFlow compares what came with what the guest tells. Bytes may be lost where the port was
// away: then the guest has opened it again.
func checkFlow(came *pattern.Follower, their []opened) (string, error) {
	var errs []error
	sent := map[uint64]uint64{}
	for _, o := range their {
		sent[o.sent.Seed] = o.sent.End
	}
	seen := map[uint64]bool{}
	for _, r := range came.Runs {
		end, known := sent[r.Seed]
		if seen[r.Seed] || r.First != 0 || known && r.End > end {
			errs = append(errs, fmt.Errorf("pattern %d comes from block %d to %d: it has a gap, or comes twice; the guest has sent %d blocks of it", r.Seed, r.First, r.End, end))
		}
		seen[r.Seed] = true
	}
	// A write may break off in the midst of a block, where another begins.
	if came.Dropped > 0 || came.Skipped >= int64(max(len(came.Runs), 1))*pattern.BlockSize {
		errs = append(errs, fmt.Errorf("%d bytes were in no block, of %d runs and %d more", came.Skipped, len(came.Runs), came.Dropped))
	}
	var blocks uint64
	next := map[uint64]uint64{} // by the pattern
	for _, o := range their {
		if o.skipped >= int64(max(len(o.received), 1))*pattern.BlockSize {
			errs = append(errs, fmt.Errorf("the guest has received %d bytes that were in no block, and %v", o.skipped, o.received))
		}
		for i, r := range o.received {
			// What is left of an earlier flow comes first, and then the next one, from its start.
			if end, known := next[r.Seed]; r.First < end || i > 0 && (known || r.First != 0) {
				errs = append(errs, fmt.Errorf("the guest has received %v: with a gap, or twice, after block %d", o.received, end))
			}
			next[r.Seed] = r.End
			blocks += r.End - r.First
		}
	}
	return fmt.Sprintf("opens=%d runs=%d in=%d out=%d", len(their), len(came.Runs), came.Blocks(), blocks), errors.Join(errs...)
}
