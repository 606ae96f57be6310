package devsw

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

// bubble runs f in a synctest bubble; a panic of f (rapid fails by one) comes
// out on the caller's goroutine.
func bubble(t *testing.T, f func()) {
	var r any
	synctest.Test(t, func(*testing.T) {
		defer func() { r = recover() }()
		f()
	})
	if r != nil {
		panic(r)
	}
}

// Localcount against a model: how many are in, whether it is closed, and which
// drains must have returned.
func TestLocalcountModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		bubble(t, func() {
			var (
				l       Localcount
				in      int
				closed  bool
				waiting int // drains that must not have returned
				ended   atomic.Int32
				want    int32
			)
			drain := func() {
				go func() {
					if err := l.Drain(context.Background()); err != nil {
						rt.Errorf("Drain: %v", err)
					}
					ended.Add(1)
				}()
				if in == 0 {
					want++
				} else {
					waiting++
				}
			}
			release := func() {
				l.Release()
				if in--; in == 0 {
					want += int32(waiting)
					waiting = 0
				}
			}
			rt.Repeat(map[string]func(*rapid.T){
				"acquire": func(rt *rapid.T) {
					n := rapid.Int64Range(1, 3).Draw(rt, "n")
					if ok := l.AcquireN(n); ok == closed {
						rt.Fatalf("AcquireN gives %v with closed %v", ok, closed)
					}
					if !closed {
						in += int(n)
					}
				},
				"release": func(rt *rapid.T) {
					if in == 0 {
						rt.Skip()
					}
					release()
				},
				"close":  func(*rapid.T) { l.Close(); closed = true },
				"reopen": func(*rapid.T) { l.Reopen(); closed = false },
				"drain":  func(*rapid.T) { drain() },
				"drain in vain": func(rt *rapid.T) {
					ctx, cancel := context.WithCancel(context.Background())
					cancel()
					err := l.Drain(ctx)
					if in == 0 && err != nil || in > 0 && !errors.Is(err, context.Canceled) {
						rt.Fatalf("Drain with an ended context and %d in: %v", in, err)
					}
				},
				"": func(rt *rapid.T) {
					synctest.Wait()
					if got := ended.Load(); got != want {
						rt.Fatalf("%d drains have returned, want %d", got, want)
					}
					if got := l.Count(); got != in {
						rt.Fatalf("Count is %d, want %d", got, in)
					}
				},
			})
			for in > 0 {
				release()
			}
			synctest.Wait()
			if got := ended.Load(); got != want {
				rt.Fatalf("at the end %d drains have returned, want %d", got, want)
			}
		})
	})
}

func TestLocalcountReleasedTooOftenPanics(t *testing.T) {
	var l Localcount
	l.Acquire()
	l.Release()
	mustPanic(t, l.Release)
}

// What is seen to be empty after Close stays empty: nobody is in, however many
// try, when Drain has returned.
func TestLocalcountKeepsItsPromiseUnderLoad(t *testing.T) {
	var (
		l    Localcount
		down atomic.Bool
		stop atomic.Bool
		wg   sync.WaitGroup
	)
	alone := runtime.GOMAXPROCS(0) == 1
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				if l.Acquire() {
					if down.Load() {
						t.Error("inside although drained")
					}
					l.Release()
				}
				if alone { // each would have a whole time slice
					runtime.Gosched()
				}
			}
		})
	}
	for range 500 {
		l.Close()
		if err := l.Drain(context.Background()); err != nil {
			t.Error(err)
		}
		down.Store(true)
		runtime.Gosched()
		down.Store(false)
		l.Reopen()
	}
	stop.Store(true)
	wg.Wait()
}

func BenchmarkLocalcount(b *testing.B) {
	var l Localcount
	b.ReportAllocs()
	for b.Loop() {
		l.Acquire()
		l.Release()
	}
}
