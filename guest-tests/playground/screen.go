package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
)

// prompt begins the line at which the guest takes input.
const prompt = "\nguest"

// leaveKey is Ctrl-], which ends the guest from the keyboard.
const leaveKey = 0x1d

// screen is the terminal, which the guest and vdev's log share: the log's lines go above the line
// that the guest is at. Without a terminal the guest has stdout, and the log stderr.
type screen struct {
	saved string // the terminal's settings, if stdin is one
	fancy bool   // stdout is a terminal

	mu   sync.Mutex
	line []byte // what the guest has written since the last line end
}

func newScreen() *screen {
	s := &screen{fancy: stty(os.Stdout, "-g") != ""}
	s.saved = stty(os.Stdin, "-g")
	if s.saved != "" {
		stty(os.Stdin, "raw", "-echo")
	}
	return s
}

func (s *screen) restore() {
	if s.saved != "" {
		stty(os.Stdin, s.saved)
	}
}

// end leaves the line that the guest was at.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.line) > 0 {
		os.Stdout.WriteString("\r\n")
	}
	s.line = nil
}

// stty runs stty(1) on a terminal, and prints nothing where it is none.
func stty(terminal *os.File, args ...string) string {
	cmd := exec.Command("stty", args...)
	cmd.Stdin = terminal
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// cursorQuery is what busybox's shell asks the terminal before each prompt. The answer would come
// too late, between what is typed, and once more for each time that the line is written again.
const cursorQuery = "\x1b[6n"

// showGuest prints what comes from the serial port until its end, and closes started at the first
// prompt.
func (s *screen) showGuest(serial io.Reader, started chan<- struct{}) {
	buf := make([]byte, 4096)
	var seen, held []byte
	for {
		n, err := serial.Read(buf)
		text := bytes.ReplaceAll(append(held, buf[:n]...), []byte(cursorQuery), nil)
		held = nil
		for i := min(len(text), len(cursorQuery)-1); i > 0 && err == nil; i-- {
			if start := len(text) - i; strings.HasPrefix(cursorQuery, string(text[start:])) {
				text, held = text[:start], bytes.Clone(text[start:])
				break
			}
		}
		s.mu.Lock()
		os.Stdout.Write(text)
		s.line = append(s.line, text...)
		s.line = s.line[bytes.LastIndexByte(s.line, '\n')+1:]
		s.mu.Unlock()
		if started != nil {
			seen = append(seen, text...)
			if bytes.Contains(seen, []byte(prompt)) {
				close(started)
				started, seen = nil, nil
			}
		}
		if err != nil {
			return
		}
	}
}

// passKeys sends what is typed to the guest and returns at the key that leaves. At the end of a
// file it says so to the guest, whose shell then ends, and waits.
func (s *screen) passKeys(serial io.Writer) {
	buf := make([]byte, 256)
	for {
		n, err := os.Stdin.Read(buf)
		keys := buf[:n]
		if i := bytes.IndexByte(keys, leaveKey); i >= 0 && s.saved != "" {
			return
		}
		if _, err := serial.Write(keys); err != nil {
			select {}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				serial.Write([]byte{4})
			}
			select {}
		}
	}
}

// logWriter shows vdev's log. Messages of the protocol are left out unless all was asked for: each
// boot has hundreds.
type logWriter struct {
	screen *screen
	all    bool
	rest   []byte
}

var message = regexp.MustCompile(`^ *[0-9.]+ vhost +(in|out) `)

func (w *logWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		line, rest, ok := bytes.Cut(w.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		if w.all || !message.Match(line) {
			w.screen.log(string(line))
		}
		w.rest = append(w.rest[:0], rest...)
	}
}

// log prints a line of the log. On a terminal the guest's line makes room for it and is written
// again below.
func (s *screen) log(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.fancy {
		os.Stderr.WriteString("vdev | " + line + "\n")
		return
	}
	if len(s.line) > 0 {
		os.Stdout.WriteString("\r\x1b[K")
	}
	os.Stdout.WriteString("\x1b[2mvdev | " + line + "\x1b[0m\r\n" + string(s.line))
}
