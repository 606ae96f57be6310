package console

import (
	"vdev/devsw"
	"vdev/devsw/line"
	"vdev/internal/control"
)

// attached is the End that is a terminal of the control socket's.
type attached struct {
	line.Base
	model *model
	t     *control.Terminal
	typed *line.Queue
}

// Attach implements control.Ported.
func (m *model) Attach(name string, watch bool) (func(*control.Terminal), error) {
	p, err := m.find(name)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	l := p.line
	m.mu.Unlock()
	if l == nil {
		return nil, control.Impossible("port %s is being removed", p)
	}
	return func(t *control.Terminal) {
		a := &attached{model: m, t: t}
		a.typed = line.NewQueue(control.Unread, a.Ready)
		// There is room for what is typed, or the queue is closed.
		role, input := line.Main, func(p []byte) { _, _ = a.typed.Put(p) }
		if watch {
			role, input = line.Watcher, func([]byte) { t.Close("who watches cannot type") }
		}
		if l.Add(a, "ctl", role) != nil {
			a.t.Close(m.gone())
			return
		}
		t.Serve(input, func(rows, cols uint16) { a.SetSize(devsw.Winsize{Row: rows, Col: cols}) })
		// What was typed last is still the guest's, whenever it reads.
		a.typed.CloseWrite()
		if a.typed.Empty() {
			a.Remove()
		} else {
			a.Hangup()
		}
	}, nil
}

// gone is why a terminal is detached whose line is closed.
func (m *model) gone() string {
	if m.ended.Load() {
		return "vdev ends"
	}
	return "the port was removed"
}

// Writev implements line.End.
func (a *attached) Writev(p [][]byte) (n int, err error) {
	for _, b := range p {
		k, err := a.t.Write(b)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Readv implements line.Input.
func (a *attached) Readv(p [][]byte) (int, error) {
	n, err := a.typed.Readv(p)
	if n > 0 {
		a.t.Taken(n)
	}
	return n, err
}

// Close implements line.End.
func (a *attached) Close() {
	a.typed.Close()
	a.t.Close(a.model.gone())
}
