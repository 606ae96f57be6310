package terminal

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// Peer is what a terminal is attached to. Read gives what is shown, and Write takes what was typed.
// Resize tells the window's size in characters. The three may be called at the same time. Close
// ends those that wait, and may be called more than once.
type Peer interface {
	io.ReadWriteCloser
	Resize(rows, cols uint16) error
}

// patience is how long Run waits, when somebody leaves, for the Peer to take what was typed before.
const patience = time.Second

// errEnded is why a Run ends when its Peer has.
var errEnded = errors.New("the peer has ended")

// Run attaches a terminal to p until one of them ends. It tells p of the window's size at first,
// and when that changes. It closes both, and returns when the settings are as before and nothing
// goes on. Config.Resized is not used.
//
// It returns nil where p has ended, after all that p has given was shown; ErrEscape where Ctrl-]
// was typed, and io.EOF where the terminal has gone, after p has taken what was typed before, if it
// does so within a second; else the context's error, or what has failed. The end of an input that
// is no terminal ends nothing.
func Run(ctx context.Context, conf Config, p Peer) error {
	defer p.Close()
	resized := make(chan struct{}, 1)
	resized <- struct{}{}
	conf.Resized = func() {
		select {
		case resized <- struct{}{}:
		default:
		}
	}
	t, err := Open(conf)
	if err != nil {
		return err
	}
	defer t.Close()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)

	// A panic of p's must find the settings as they were.
	var all sync.WaitGroup
	all.Go(func() {
		defer t.restore()
		_, err := io.Copy(t, p)
		if err == nil {
			err = errEnded
		}
		end(err)
	})
	copied := make(chan struct{})
	all.Go(func() {
		defer close(copied)
		defer t.restore()
		t.CopyTo(p, func(err error) {
			if err != io.EOF || t.IsTerminal() {
				end(err)
			}
		})
	})
	all.Go(func() {
		defer t.restore()
		for {
			select {
			case <-ctx.Done():
				return
			case <-resized:
			}
			if rows, cols, ok := t.Size(); ok {
				if err := p.Resize(rows, cols); err != nil {
					end(err)
				}
			}
		}
	})
	<-ctx.Done()
	err = t.Close()
	cause := context.Cause(ctx)
	if cause == ErrEscape || cause == io.EOF {
		select {
		case <-copied:
		case <-time.After(patience):
		}
	}
	p.Close()
	all.Wait()
	if cause != errEnded {
		return errors.Join(cause, err)
	}
	return err
}
