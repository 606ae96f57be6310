package console

import (
	"sync"
	"testing"

	"vdev/devsw/line"
	"vdev/internal/spec"
)

// TestATerminalMayComeWhileItsPortGoes: it is attached to the line, or refused.
func TestATerminalMayComeWhileItsPortGoes(t *testing.T) {
	for range 200 {
		p := &port{Port: spec.Port{ID: 1, Name: "a"}, line: line.New(line.Config{})}
		m := &model{ports: []*port{p}}
		var both sync.WaitGroup
		both.Go(func() {
			if serve, err := m.Attach("a", false); (serve == nil) == (err == nil) {
				t.Errorf("%v, and something to serve it: %v", err, serve != nil)
			}
		})
		both.Go(func() {
			if l, err := m.take(p); l == nil || err != nil {
				t.Errorf("%v, %v", l, err)
			}
			if _, err := m.take(p); err == nil {
				t.Error("a port is removed twice")
			}
		})
		both.Wait()
	}
}
