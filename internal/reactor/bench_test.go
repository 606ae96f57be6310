package reactor

import (
	"sync/atomic"
	"testing"
	"time"

	"vdev/internal/sys"
)

// BenchmarkPost is from Post to the call on the reactor, and back.
func BenchmarkPost(b *testing.B) {
	for _, mode := range []Mode{ModeURing, ModeThreads} {
		b.Run(string(mode), func(b *testing.B) {
			r := newBenchPool(b, mode, 0).Pick()
			done := make(chan struct{})
			fn := func() { done <- struct{}{} }
			b.ReportAllocs()
			for b.Loop() {
				r.Post(fn)
				<-done
			}
		})
	}
}

// BenchmarkKick is from a kick to Poll, and back, of a reactor that sleeps whenever it may, and of
// one that first looks for work.
func BenchmarkKick(b *testing.B) {
	for _, bc := range []struct {
		name    string
		mode    Mode
		pollMax time.Duration
	}{
		{"io_uring/asleep", ModeURing, -1},
		{"io_uring/looking", ModeURing, 0},
		{"threads/asleep", ModeThreads, -1},
	} {
		b.Run(bc.name, func(b *testing.B) {
			r := newBenchPool(b, bc.mode, bc.pollMax).Pick()
			kick, err := sys.NewEventfd()
			if err != nil {
				b.Fatal(err)
			}
			defer kick.Close()
			k := &kicked{polled: make(chan struct{}, 1)}
			r.Do(func() {
				if k.src, err = r.Add(k, kick.Int()); err != nil {
					b.Error(err)
				}
			})
			defer r.Do(func() { r.Remove(k.src) })
			b.ReportAllocs()
			for b.Loop() {
				k.work.Store(true)
				if err := sys.EventfdWrite(kick.Int()); err != nil {
					b.Fatal(err)
				}
				<-k.polled
			}
		})
	}
}

// kicked is a Poller that tells of each kick.
type kicked struct {
	src    *Source
	work   atomic.Bool
	polled chan struct{}
}

func (k *kicked) Poll() bool {
	if !k.work.Swap(false) {
		return false
	}
	k.polled <- struct{}{}
	return true
}

func (k *kicked) Arm() bool { return k.work.Load() }
func (k *kicked) Disarm()   {}
func (k *kicked) Flush()    {}

func newBenchPool(b *testing.B, mode Mode, pollMax time.Duration) *Pool {
	p, err := NewPool(Config{Mode: mode, PollMax: pollMax})
	if err != nil {
		b.Skip(err)
	}
	b.Cleanup(p.Close)
	return p
}

// BenchmarkSignal is a write to an eventfd, watched, and as it would be without.
func BenchmarkSignal(b *testing.B) {
	fd, err := sys.NewEventfd()
	if err != nil {
		b.Fatal(err)
	}
	defer fd.Close()
	r := newBenchPool(b, ModeURing, 0).Pick()
	for _, bc := range []struct {
		name   string
		signal func()
	}{
		{"watched", func() { r.Signal(fd.Int()) }},
		{"bare", func() { _ = sys.EventfdWrite(fd.Int()) }},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			r.Do(func() {
				for b.Loop() {
					bc.signal()
				}
			})
		})
	}
}
