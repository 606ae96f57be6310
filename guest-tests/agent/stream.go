package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"vdev/guest-tests/internal/pattern"
)

func init() {
	commands["stream"] = command{
		usage: "LINE [send=B] [receive=B] [seed=N] [bs=B]: both at once; seed's pattern goes out, the one of seed+1 comes in",
		words: 1, keys: "send receive seed bs", run: stream,
	}
	commands["flow"] = command{
		usage: "LINE [seed=N] [bs=B]: sends patterns and looks at those that come, until finish; opens LINE again where it goes away, " +
			"and sends the pattern of the next seed then",
		words: 1, keys: "seed bs", run: flow,
	}
}

// lineBlock is how much is written to a line at once.
const lineBlock = 32 << 10

// again is how long to wait before a line is tried again that nobody is at, or that is not there.
const again = 10 * time.Millisecond

// patient is a line whose far side may be away for a time, which a read of nothing tells.
type patient struct{ *os.File }

func (p patient) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		if n > 0 || err != io.EOF {
			return n, err
		}
		time.Sleep(again)
	}
}

// lineOptions reads what stream and flow have in common.
func lineOptions(p params) (seed uint64, bs int, err error) {
	s, err := p.number("seed", 1)
	if err != nil {
		return 0, 0, err
	}
	n, err := p.number("bs", lineBlock)
	if err == nil && (n <= 0 || n%pattern.BlockSize != 0 || n > 16<<20) {
		err = fmt.Errorf("bs=%s: must be whole blocks of %d bytes", p.opts["bs"], pattern.BlockSize)
	}
	return uint64(s), int(n), err
}

func stream(p params) (string, error) {
	seed, bs, err := lineOptions(p)
	if err != nil {
		return "", err
	}
	send, err := p.number("send", 0)
	if err != nil {
		return "", err
	}
	receive, err := p.number("receive", 0)
	if err != nil {
		return "", err
	}
	if send%pattern.BlockSize != 0 || receive%pattern.BlockSize != 0 {
		return "", fmt.Errorf("send=%d receive=%d: must be whole blocks of %d bytes", send, receive, pattern.BlockSize)
	}
	f, err := openLine(p.words[0], p.quit)
	if err != nil {
		return "", err
	}
	line := patient{f}
	failed := make(chan error, 2)
	go func() { failed <- sendPattern(line, seed, send, bs) }()
	go func() { failed <- receivePattern(line, seed+1, receive) }()
	for range 2 {
		// A failure in one direction leaves the other waiting; what it waits in has a descriptor of
		// its own.
		if err := <-failed; err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d bytes sent, %d received", send, receive), f.Close()
}

func sendPattern(w io.Writer, seed uint64, size int64, bs int) error {
	buf := make([]byte, bs)
	for off := int64(0); off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		pattern.Fill(buf, seed, off)
		if _, err := w.Write(buf); err != nil {
			return fmt.Errorf("sent %d bytes: %w", off, err)
		}
	}
	return nil
}

func receivePattern(r io.Reader, seed uint64, size int64) error {
	buf := make([]byte, lineBlock)
	for off := int64(0); off < size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-off)]
		if n, err := io.ReadFull(r, buf); err != nil {
			return fmt.Errorf("received %d bytes: %w", off+int64(n), err)
		}
		if err := pattern.Verify(buf, seed, off); err != nil {
			return err
		}
	}
	return nil
}

// flow reports what it has opened, sent and received: the last as pattern.Follower has it, for each
// time that the line was opened.
func flow(p params) (string, error) {
	seed, bs, err := lineOptions(p)
	if err != nil {
		return "", err
	}
	var report strings.Builder
	for opens := uint64(0); ; opens++ {
		f, err := openLine(p.words[0], p.quit)
		if errors.Is(err, errQuit) {
			return strings.TrimSpace(report.String()), nil
		}
		if err != nil {
			return report.String(), err
		}
		sent, in, err := flowOnce(f, seed+opens, bs, p.quit)
		fmt.Fprintf(&report, "sent %d:0-%d received %v\n", seed+opens, sent/pattern.BlockSize, in)
		if err != nil {
			return report.String(), err
		}
	}
}

// errQuit says that a command in the background was told to end.
var errQuit = errors.New("told to end")

// flowOnce works on a line until it goes away, which is no error, or until quit is closed.
func flowOnce(f *os.File, seed uint64, bs int, quit <-chan struct{}) (sent int64, in *pattern.Follower, err error) {
	line := patient{f}
	in = new(pattern.Follower)
	failed := make(chan error, 2)
	direction := func(work func() error) {
		go func() {
			for {
				if err := work(); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	out, buf := make([]byte, bs), make([]byte, lineBlock)
	direction(func() error {
		pattern.Fill(out, seed, sent)
		n, err := line.Write(out)
		sent += int64(n)
		return err
	})
	direction(func() error {
		n, err := line.Read(buf)
		in.Take(buf[:n])
		return err
	})
	// The direction that ends first takes the other with it.
	var errs []error
	select {
	case err := <-failed:
		errs = append(errs, err)
	case <-quit:
	}
	if err := f.SetDeadline(time.Now()); err != nil {
		return sent, in, err
	}
	for len(errs) < 2 {
		errs = append(errs, <-failed)
	}
	for i, err := range errs {
		if errors.Is(err, os.ErrDeadlineExceeded) || isGone(err) {
			errs[i] = nil
		}
	}
	return sent, in, errors.Join(append(errs, f.Close())...)
}

// isGone tells the end of a line that was taken away from other errors.
func isGone(err error) bool {
	// Linux ends a write that waits for room with no bytes and no error.
	return errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENXIO) || errors.Is(err, io.ErrUnexpectedEOF)
}

// control does something with a file's descriptor, and leaves the file in the runtime's poller.
func control(f *os.File, do func(fd uintptr) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = do(fd) })
	return errors.Join(err, failed)
}
