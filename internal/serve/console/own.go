package console

import (
	"errors"
	"os"
	"sync"

	"vdev/devsw/line"
	"vdev/internal/dev/stdio"
)

// Own is vdev's own terminal, its standard input and output, which one port may have.
type Own struct {
	// Signals are those that vdev handles itself. When any other ends it, the terminal is as it was
	// before.
	Signals []os.Signal
	// Left is called when the terminal has gone: with terminal.ErrEscape where somebody has typed
	// the escape, else with what has happened.
	Left func(why error)

	mu   sync.Mutex
	used *stdio.Stdio // nil: no port has it
}

// open makes the terminal the other side of a line.
func (o *Own) open(l *line.Line) error {
	if o == nil {
		return errors.New("vdev has no terminal here")
	}
	s, err := stdio.Open(l, line.Main, stdio.Config{In: os.Stdin, Out: os.Stdout, Own: o.Signals, Left: o.Left})
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.used = s
	return nil
}

// Restore gives the terminal the settings it had before. It is for the end of a vdev that cannot
// wait for its devices, and does nothing where they have been closed.
func (o *Own) Restore() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.used != nil {
		o.used.Close()
	}
}
