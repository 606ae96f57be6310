package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
)

// prompt begins the line at which the guest takes input.
const prompt = "\nguest"

// leaveKey is Ctrl-], which ends the guest from the keyboard. endOfInput, Ctrl-D, ends its shell.
const leaveKey, endOfInput = 0x1d, 0x04

// screen is the terminal, which the guest and vdev's log share: the log's lines go above the line
// that the guest is at, and wait while a program of the guest's has the whole screen. Without a
// terminal the guest has stdout, and the log stderr.
type screen struct {
	saved string // the terminal's settings, if stdin is one
	fancy bool   // stdout is a terminal

	mu    sync.Mutex
	line  []byte   // what the guest has written since the last line end
	full  bool     // a program of the guest's has the whole screen
	tail  []byte   // the last bytes that the guest has written: a part of fullOn or fullOff, maybe
	later []string // lines of the log that wait, the last maxLater
}

// What a program writes to a terminal that takes the whole screen, and that gives it back.
var fullOn, fullOff = []byte("\x1b[?1049h"), []byte("\x1b[?1049l")

const maxLater = 500

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
	if s.full {
		os.Stdout.Write(fullOff)
		s.leaveFullLocked()
	}
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

// showGuest prints what comes from a line to the guest until its end, where show says that it is
// to be seen, and calls prompted at the first prompt.
func (s *screen) showGuest(line io.Reader, show func() bool, prompted func()) {
	buf := make([]byte, 4096)
	var seen, held []byte
	for {
		n, err := line.Read(buf)
		text := bytes.ReplaceAll(append(held, buf[:n]...), []byte(cursorQuery), nil)
		held = nil
		for i := min(len(text), len(cursorQuery)-1); i > 0 && err == nil; i-- {
			if start := len(text) - i; strings.HasPrefix(cursorQuery, string(text[start:])) {
				text, held = text[:start], bytes.Clone(text[start:])
				break
			}
		}
		if len(text) > 0 && show() {
			s.write(text)
		}
		if prompted != nil {
			seen = append(seen, text...)
			if bytes.Contains(seen, []byte(prompt)) {
				prompted()
				prompted, seen = nil, nil
			}
		}
		if err != nil {
			return
		}
	}
}

// write prints what the guest has written.
func (s *screen) write(text []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	os.Stdout.Write(text)
	s.line = append(s.line, text...)
	s.line = s.line[bytes.LastIndexByte(s.line, '\n')+1:]

	recent := append(s.tail, text...)
	if on, off := bytes.LastIndex(recent, fullOn), bytes.LastIndex(recent, fullOff); on > off {
		s.full = true
	} else if off > on && s.full {
		s.leaveFullLocked()
	}
	s.tail = append(s.tail[:0], recent[max(0, len(recent)-len(fullOn)+1):]...)
}

// leaveFullLocked prints what has waited while a program had the whole screen.
func (s *screen) leaveFullLocked() {
	s.full, s.line = false, nil
	for _, line := range s.later {
		s.logLocked(line)
	}
	s.later = nil
}

// readKeys passes on what is typed, from the beginning on, and returns at the key that leaves. The
// channel is closed at the end of a file. What is typed before somebody takes it waits.
func (s *screen) readKeys(typed chan<- []byte) (leave bool) {
	defer close(typed)
	waiting := make(chan []byte)
	go func() {
		defer close(waiting)
		for {
			buf := make([]byte, 256)
			n, err := os.Stdin.Read(buf)
			if n > 0 {
				waiting <- buf[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	var held []byte
	for {
		out := typed
		if len(held) == 0 {
			if waiting == nil {
				return false
			}
			out = nil
		}
		in := waiting
		if len(held) >= maxHeld {
			in = nil
		}
		select {
		case keys, ok := <-in:
			if !ok {
				waiting = nil
				continue
			}
			if s.saved != "" && bytes.IndexByte(keys, leaveKey) >= 0 {
				return true
			}
			held = append(held, keys...)
		case out <- held:
			held = nil
		}
	}
}

// maxHeld is how much is read that nobody takes.
const maxHeld = 64 << 10

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
	switch {
	case !s.fancy:
		os.Stderr.WriteString("vdev | " + line + "\n")
	case s.full:
		s.later = append(s.later[max(0, len(s.later)-maxLater+1):], line)
	default:
		s.logLocked(line)
	}
}

func (s *screen) logLocked(line string) {
	if len(s.line) > 0 {
		os.Stdout.WriteString("\r\x1b[K")
	}
	os.Stdout.WriteString("\x1b[2mvdev | " + line + "\x1b[0m\r\n" + string(s.line))
}
