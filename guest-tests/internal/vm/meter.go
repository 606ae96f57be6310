package vm

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// meterPause is between two questions of a Meter.
const meterPause = 2 * time.Millisecond

// Meter asks QEMU for its status again and again, on a monitor of its own, and notes how long the
// answers take. QEMU answers on its main loop, which also waits there for the back-ends' answers.
type Meter struct {
	conn  net.Conn
	ended chan struct{}

	mu      sync.Mutex
	asked   time.Time     // the question that is not answered yet
	longest time.Duration // of the others
	count   int
}

// Measure starts a Meter. Stop ends it.
func (m *Machine) Measure(ctx context.Context) (*Meter, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(m.dir, meterSocket))
	if err != nil {
		return nil, err
	}
	t := &Meter{conn: conn, ended: make(chan struct{})}
	in := bufio.NewReader(conn)
	// QEMU greets, and answers the first command, before it may be asked anything.
	if _, err = in.ReadString('\n'); err == nil {
		err = t.ask(in, `{"execute":"qmp_capabilities"}`)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("QEMU's second monitor: %w", err)
	}
	go func() {
		defer close(t.ended)
		for {
			t.mu.Lock()
			t.asked = time.Now()
			t.mu.Unlock()
			err := t.ask(in, `{"execute":"query-status"}`)
			t.mu.Lock()
			t.longest = max(t.longest, time.Since(t.asked))
			t.asked = time.Time{}
			if err == nil {
				t.count++
			}
			t.mu.Unlock()
			if err != nil {
				return
			}
			time.Sleep(meterPause)
		}
	}()
	return t, nil
}

// ask waits for the answer to a command, and lets events pass.
func (t *Meter) ask(in *bufio.Reader, command string) error {
	if _, err := fmt.Fprintln(t.conn, command); err != nil {
		return err
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.HasPrefix(line, `{"return"`) || strings.HasPrefix(line, `{"error"`) {
			return nil
		}
	}
}

// Stop returns the longest time that an answer took, and how many there were. A question that QEMU
// has not answered when it is stopped, or when QEMU ends, counts as if it had been answered then.
func (t *Meter) Stop() (longest time.Duration, answers int) {
	t.mu.Lock()
	if !t.asked.IsZero() {
		t.longest = max(t.longest, time.Since(t.asked))
	}
	longest, answers = t.longest, t.count
	t.mu.Unlock()
	t.conn.Close()
	<-t.ended
	return longest, answers
}
