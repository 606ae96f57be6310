// Package stdio is the end of a line that is the standard input and output of this process: the
// terminal of whoever has started it, in raw mode, or pipes and files.
//
// Ctrl-] leaves: the terminal has its settings back, and the line goes on without it. So it does
// when the terminal goes away. The end of an input that is no terminal ends the input, and the
// output goes on.
package stdio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"vdev/devsw"
	"vdev/devsw/line"
	"vdev/internal/terminal"
)

// Config describes the end.
type Config struct {
	In, Out *os.File // they stay the caller's
	// Own are the signals that the program handles itself: see terminal.Config.
	Own []os.Signal
	// Left is called, if it is not nil, when a terminal has left the line: why is
	// terminal.ErrEscape after Ctrl-], else an error, or io.EOF where the terminal has gone. The
	// settings are as before by then. It is not called for Close, nor when the line has closed.
	Left func(why error)
}

// Stdio is the End.
type Stdio struct {
	line.Base
	conf  Config
	term  *terminal.Terminal
	queue *line.Queue
	over  atomic.Bool // it is leaving, for whatever reason
}

// Open adds standard input and output to l. A terminal is raw when it returns.
func Open(l *line.Line, role line.Role, conf Config) (*Stdio, error) {
	s := &Stdio{conf: conf}
	s.queue = line.NewQueue(0, s.Ready)
	var err error
	s.term, err = terminal.Open(terminal.Config{In: conf.In, Out: conf.Out, Escape: true, Own: conf.Own, Resized: s.size})
	if err != nil {
		return nil, fmt.Errorf("stdio: %w", err)
	}
	s.size()
	if err := l.Add(s, "stdio", role); err != nil {
		return nil, errors.Join(fmt.Errorf("stdio: %w", err), s.term.Close())
	}
	go func() {
		s.term.CopyTo(putter{s.queue}, s.ended)
		if s.over.Load() {
			s.queue.CloseWrite()
		}
	}()
	return s, nil
}

// putter puts what is written into a queue.
type putter struct{ q *line.Queue }

func (p putter) Write(b []byte) (int, error) { return p.q.Put(b) }

func (s *Stdio) size() {
	rows, cols, _ := s.term.Size()
	s.SetSize(devsw.Winsize{Row: rows, Col: cols})
}

// ended is called when no more is typed. What was typed before goes to the queue still, when the
// guest makes room there.
func (s *Stdio) ended(why error) {
	if why == io.EOF && !s.term.IsTerminal() || s.over.Swap(true) {
		return
	}
	err := s.term.Close()
	s.Hangup()
	if s.conf.Left != nil {
		s.conf.Left(errors.Join(why, err))
	}
}

// Writev implements line.End.
func (s *Stdio) Writev(p [][]byte) (int, error) { return s.term.Write(p[0]) }

// Readv implements line.Input.
func (s *Stdio) Readv(p [][]byte) (int, error) { return s.queue.Readv(p) }

// Close implements line.End: it gives a terminal its settings back.
func (s *Stdio) Close() {
	s.over.Store(true)
	_ = s.term.Close()
	s.queue.Close()
}
