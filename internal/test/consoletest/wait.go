package consoletest

import (
	"fmt"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
)

// event notes what has woken the epoll instance. Of calls there is nothing to note: the rings say
// what is new.
func (g *Guest) event(tag uint64) {
	switch tag & tagKinds {
	case tagErr:
		if i := int(tag &^ tagKinds); g.queues[i].Failed() {
			g.broken = append(g.broken, i)
		}
	case tagChannel:
		g.news = true
	}
}

// Poll handles what the device has done so far.
func (g *Guest) Poll() error {
	if err := g.epoll.Wait(0, g.woken); err != nil {
		return err
	}
	if err := g.poll(); err != nil {
		return err
	}
	return g.tellBroken()
}

// tellBroken tells of one ring that was given up.
func (g *Guest) tellBroken() error {
	if len(g.broken) == 0 {
		return nil
	}
	i := g.broken[0]
	g.broken = g.broken[1:]
	return fmt.Errorf("ring %d: %w", i, ErrBroken)
}

// poll is Poll without a system call where there is nothing.
func (g *Guest) poll() error {
	if g.news {
		g.news = false
		if err := g.hear(); err != nil {
			return err
		}
	}
	for i, q := range g.inUse() {
		if !q.PendingUsed() {
			continue
		}
		switch {
		case g.Multiport() && i == controlIn:
			if err := g.control(q); err != nil {
				return err
			}
		case i%2 == 0:
			if err := g.input(q, g.portOf(i)); err != nil {
				return err
			}
		default:
			g.reclaim(q)
		}
	}
	return nil
}

// portOf returns the port that has a ring, nil where there is none.
func (g *Guest) portOf(ring int) *Port {
	if ring < 2 {
		return g.ports[0]
	}
	return g.ports[ring/2-1]
}

// hear reads what came on the back-end channel.
func (g *Guest) hear() error {
	for !g.f.BackendQuiet() {
		req, err := g.f.ReceiveBackend()
		if err != nil {
			return fmt.Errorf("back-end channel: %w", err)
		}
		if req != vhostuser.BackendConfigChangeMsg {
			return fmt.Errorf("back-end channel: unexpected %v", req)
		}
		g.ConfigChanges++
		// With MULTIPORT Linux does not look.
		if !g.Multiport() && g.state == running {
			if err := g.ReadConfig(); err != nil {
				return err
			}
		}
	}
	return nil
}

// reclaim frees the chains that were used.
func (g *Guest) reclaim(q *queue) {
	for {
		head, _, ok := q.Used()
		if !ok {
			return
		}
		g.give(q.held[head])
		q.held[head] = buffer{}
	}
}

// Wake makes Wait look again whether it is done. Any goroutine, while the Guest is there.
func (g *Guest) Wake() {
	// It fails only where nobody could sleep on it either.
	_ = sys.EventfdWrite(g.wake.Int())
}

// Wait handles what the device does, and sleeps between, until done returns true. what says in an
// error what was waited for. ErrTimeout is wrapped after g.Patience, ErrBroken where a ring was
// given up meanwhile.
func (g *Guest) Wait(what string, done func() bool) error {
	var deadline time.Time
	for {
		if err := g.poll(); err != nil {
			return err
		}
		if done() {
			return nil
		}
		if err := g.tellBroken(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := g.sleep(what, g.inUse(), &deadline); err != nil {
			return err
		}
	}
}

// sleep waits until one of the rings has something that is used, or until something else has come.
// deadline is set by the first of several calls for one thing.
func (g *Guest) sleep(what string, queues []*queue, deadline *time.Time) error {
	now := time.Now()
	if deadline.IsZero() {
		*deadline = now.Add(g.Patience)
	}
	left := deadline.Sub(now)
	if left <= 0 {
		return fmt.Errorf("%s: %w within %v", what, ErrTimeout, g.Patience)
	}
	pending := false
	for _, q := range queues {
		pending = q.EnableCalls() || pending
	}
	if !pending {
		if err := g.epoll.Wait(left, g.woken); err != nil {
			return err
		}
	}
	for _, q := range queues {
		q.DisableCalls()
	}
	return nil
}

// spin waits until the chain of ours at head was used. It handles nothing else, as a processor of
// Linux does nothing else meanwhile.
func (g *Guest) spin(what string, q *queue, head uint16) error {
	var deadline time.Time
	for {
		if g.reclaim(q); q.held[head].bytes == nil {
			return nil
		}
		if err := g.tellBroken(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err := g.sleep(what, g.queues[q.Index:q.Index+1], &deadline); err != nil {
			return err
		}
	}
}
