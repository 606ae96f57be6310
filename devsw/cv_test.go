package devsw

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sleeper runs one Wait on a goroutine of its own.
func sleeper(ctx context.Context, l sync.Locker, c *Cv, ready func() bool) <-chan error {
	done := make(chan error, 1)
	go func() {
		l.Lock()
		defer l.Unlock()
		done <- c.WaitContext(ctx, ready)
	}()
	synctest.Wait()
	return done
}

func TestCvSleepsUntilReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		c := NewCv(&mu)
		n := 0
		one := sleeper(t.Context(), &mu, c, func() bool { return n >= 1 })
		two := sleeper(t.Context(), &mu, c, func() bool { return n >= 2 })

		mu.Lock()
		c.Broadcast() // nobody is ready
		mu.Unlock()
		synctest.Wait()
		if len(one)+len(two) != 0 {
			t.Fatal("a sleeper that is not ready has woken")
		}
		mu.Lock()
		n = 1
		c.Broadcast()
		mu.Unlock()
		synctest.Wait()
		if len(one) != 1 || len(two) != 0 {
			t.Fatalf("woken: %d and %d, want 1 and 0", len(one), len(two))
		}
		mu.Lock()
		n = 2
		c.Broadcast()
		mu.Unlock()
		if err := errors.Join(<-one, <-two); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCvCancelWakesSleepersAndThoseWhoComeLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		c := NewCv(&mu)
		never := func() bool { return false }
		before := sleeper(t.Context(), &mu, c, never)
		mu.Lock()
		c.Cancel()
		if !c.Cancelled() {
			t.Error("not Cancelled after Cancel")
		}
		mu.Unlock()
		after := sleeper(t.Context(), &mu, c, never)
		ready := sleeper(t.Context(), &mu, c, func() bool { return true })
		for _, done := range []<-chan error{before, after, ready} {
			if err := <-done; err != ECANCELED {
				t.Errorf("Wait gives %v, want ECANCELED", err)
			}
		}
		mu.Lock()
		c.Reset()
		mu.Unlock()
		n := 0
		again := sleeper(t.Context(), &mu, c, func() bool { return n > 0 })
		if len(again) != 0 {
			t.Fatal("does not sleep after Reset")
		}
		mu.Lock()
		n++
		c.Broadcast()
		mu.Unlock()
		if err := <-again; err != nil {
			t.Error(err)
		}
	})
}

// What d_close does in a driver without d_cancel.
func TestCvCancelAndResetAtOnceWakeSleepers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		c := NewCv(&mu)
		done := sleeper(t.Context(), &mu, c, func() bool { return false })
		mu.Lock()
		c.Cancel()
		c.Reset()
		mu.Unlock()
		if err := <-done; err != ECANCELED {
			t.Errorf("Wait gives %v, want ECANCELED", err)
		}
	})
}

func TestCvWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		c := NewCv(&mu)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := <-sleeper(ctx, &mu, c, func() bool { return false }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitContext gives %v", err)
		}
	})
}

// A driver without DMPSafe sleeps with the table as its lock: the sleep lets it
// go, so that d_cancel comes through.
func TestCancelIsNotStuckBehindASleepingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		cv := NewCv(table)
		cdev := &Cdevsw{
			Read: func(Dev, *Uio, Flag) error {
				return cv.Wait(func() bool { return false })
			},
			Cancel: func(Dev, Flag, Mode) error { cv.Cancel(); return nil },
		}
		_, cmajor, err := table.Attach("tty", nil, NODEVMAJOR, cdev, NODEVMAJOR)
		if err != nil {
			t.Fatal(err)
		}
		dev := Makedev(uint32(cmajor), 0)
		read := make(chan error, 1)
		go func() { read <- table.CdevRead(dev, NewUio(UIORead), 0) }()
		synctest.Wait()
		if err := table.CdevCancel(dev, 0, IFCHR); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != ECANCELED {
			t.Errorf("read gives %v, want ECANCELED", err)
		}
	})
}
