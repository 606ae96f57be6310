package console

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"vdev/devsw/line"
	"vdev/internal/control"
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

// target is a model as a control.Server has it.
type target struct {
	control.Process
	control.Target
	model *model
}

func (target) Name() string          { return "" }
func (c target) Model() (any, error) { return c.model, nil }

// TestATerminalThatHasGoneStaysOnlyForWhatItHasTyped: also where nobody in the guest reads.
func TestATerminalThatHasGoneStaysOnlyForWhatItHasTyped(t *testing.T) {
	l := line.New(line.Config{Overflow: line.Wait})
	defer l.Close()
	m := &model{ports: []*port{{Port: spec.Port{ID: 1, Name: "a"}, line: l}}}
	path := filepath.Join(t.TempDir(), "ctl")
	ln, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(target{}, []control.Target{target{model: m}}, nil)
	s.Start(ln)
	defer s.Close()
	c := control.NewClient(path)
	for _, typed := range []string{"", "x", "", ""} {
		a, err := c.Attach(t.Context(), "a", false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write([]byte(typed)); err != nil {
			t.Error(err)
		}
		a.Close()
	}
	gone := func() bool {
		ends := l.Status().Ends
		return len(ends) == 1 && ends[0].Hungup
	}
	for began := time.Now(); !gone(); time.Sleep(time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%+v", l.Status().Ends)
		}
	}
}
