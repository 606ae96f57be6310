package specfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"

	"pgregory.net/rapid"
)

// port is a user of a device, with all Lives it has had. It writes down what its functions are
// told.
type port struct {
	*Lives
	mu  sync.Mutex
	had []*lived
}

// lived is one Life, and what a test knows of it. Told and closed are guarded by port.mu.
type lived struct {
	*Life
	port       *port
	flag       devsw.Flag // what d_open is told, and no other one
	told       []string
	closed     bool // Close or Revoke was called
	opensNever bool // it was waiting then
	left       bool // the device was seen not to be closing since then
	held       int
	bufs       []*devsw.Buf
	decided    error // how d_open was told to end
}

func (s *setup) newPort(kind devsw.Mode) *port {
	p := &port{Lives: &Lives{FS: s.fs, Mode: kind, Dev: s.dev(kind)}}
	note := func(l *Life, what string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, v := range p.had {
			if v.node == l.node {
				v.told = append(v.told, what)
			}
		}
	}
	p.Opened = func(l *Life) { note(l, "opened") }
	p.Began = func(l *Life) { note(l, "began") }
	p.Ending = func(l *Life) { note(l, "ending") }
	p.Ended = func(l *Life, _ error) { note(l, "ended") }
	return p
}

// begin begins a Life whose d_open gets this flag as well.
func (p *port) begin(mark devsw.Flag) *lived {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := &lived{port: p, flag: rw | mark<<8}
	p.Flag = func() devsw.Flag {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, v := range p.had {
			if v.closed && !v.opensNever && !slices.Contains(v.told, "ended") {
				v.told = append(v.told, "overtaken")
			}
		}
		last := p.had[len(p.had)-1]
		last.told = append(last.told, "flag")
		return last.flag
	}
	v.Life = p.Begin()
	p.had = append(p.had, v)
	return v
}

func (p *port) take(v *lived) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	told := v.told
	v.told = nil
	return told
}

func eachKind(t *testing.T, f func(t *testing.T, s *setup, kind devsw.Mode)) {
	for _, kind := range []devsw.Mode{devsw.IFBLK, devsw.IFCHR} {
		t.Run(kind.String(), func(t *testing.T) {
			run(t, nil, func(t *testing.T, s *setup) { f(t, s, kind) })
		})
	}
}

func (v *lived) expect(t *testing.T, want lifeState) {
	t.Helper()
	synctest.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.state != want {
		t.Errorf("the Life is in state %d, want %d", v.state, want)
	}
}

func TestALifeOpensAndIsClosedOnce(t *testing.T) {
	eachKind(t, func(t *testing.T, s *setup, kind devsw.Mode) {
		p := s.newPort(kind)
		v := p.begin(1)
		<-v.Began()
		v.expect(t, lifeOpen)
		if n := p.ending.Count(); v.Err() != nil || n != 0 {
			t.Errorf("Err %v, %d are being closed", v.Err(), n)
		}
		if !v.Close(rw) || v.Close(rw) || v.Revoke() {
			t.Error("it is not the first Close that ends it")
		}
		if err := p.WaitClosed(t.Context()); err != nil {
			t.Error(err)
		}
		v.expect(t, lifeEnded)
		if got, want := p.take(v), []string{"flag", "opened", "began", "ending", "ended"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		s.check(t, "open", "cancel", "close")
	})
}

// TestALifeThatFailsIsOverWhenItIsClosed, and the next one tries again.
func TestALifeThatFailsIsOverWhenItIsClosed(t *testing.T) {
	eachKind(t, func(t *testing.T, s *setup, kind devsw.Mode) {
		p := s.newPort(kind)
		s.lock(func() { s.openErr = devsw.EIO })
		v := p.begin(1)
		<-v.Began()
		v.expect(t, lifeFailed)
		if !errors.Is(v.Err(), devsw.EIO) {
			t.Errorf("Err is %v", v.Err())
		}
		s.lock(func() { s.openErr = nil })
		v.Close(rw)
		next := p.begin(2)
		next.expect(t, lifeOpen)
		v.expect(t, lifeEnded)
		if got, want := p.take(v), []string{"flag", "began", "ending", "ended"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		next.Revoke()
		synctest.Wait()
		s.check(t, "open", "open", "cancel", "close")
	})
}

// TestTheNextLifeWaitsForAllThatWasHeld, and those that end while they wait open nothing, and have
// nobody wait.
func TestTheNextLifeWaitsForAllThatWasHeld(t *testing.T) {
	eachKind(t, func(t *testing.T, s *setup, kind devsw.Mode) {
		p := s.newPort(kind)
		v := p.begin(1)
		<-v.Began()
		v.Hold()
		v.Hold()
		v.Close(rw)
		for range 3 {
			idle := p.begin(2)
			idle.expect(t, lifeWaiting)
			idle.Close(rw)
			if !idle.Await(time.Hour) || !errors.Is(idle.Err(), context.Canceled) {
				t.Errorf("a Life that has opened nothing has not ended, with %v", idle.Err())
			}
			if told := p.take(idle); slices.Contains(told, "flag") {
				t.Errorf("it was told %q", told)
			}
		}
		next := p.begin(3)
		v.Release()
		next.expect(t, lifeWaiting)
		v.expect(t, lifeClosing)
		s.check(t, "open", "cancel", "close")
		v.Release()
		next.expect(t, lifeOpen)
		v.expect(t, lifeEnded)
		next.Close(rw)
		synctest.Wait()
	})
}

// TestALifeThatIsLateIsToldOnce, while its device is still being closed.
func TestALifeThatIsLateIsToldOnce(t *testing.T) {
	eachKind(t, func(t *testing.T, s *setup, kind devsw.Mode) {
		p := s.newPort(kind)
		v := p.begin(1)
		<-v.Began()
		if v.Await(time.Millisecond) || v.Late() || v.TellLate() != nil {
			t.Error("a Life that nobody has closed is late")
		}
		s.setHold()
		v.Close(rw)
		if v.Late() {
			t.Error("it is late before anybody has waited")
		}
		if v.Await(time.Millisecond) || !v.Late() {
			t.Error("it is not late")
		}
		var drain *DrainError
		if err := v.TellLate(); !errors.As(err, &drain) || drain.Dev != s.dev(kind) {
			t.Errorf("it tells %v", err)
		}
		if err := v.TellLate(); err != nil || !v.Late() {
			t.Errorf("it tells %v again", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := p.WaitClosed(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitClosed gives %v", err)
		}
		s.releaseHold()
		if !v.Await(time.Hour) || v.Late() || v.TellLate() != nil {
			t.Error("it has not ended, or is late for ever")
		}
	})
}

// TestALifeIsAwaitedFromWhenItsCloseHasBegun: what the Life takes until then tells nothing of the
// device.
func TestALifeIsAwaitedFromWhenItsCloseHasBegun(t *testing.T) {
	eachKind(t, func(t *testing.T, s *setup, kind devsw.Mode) {
		p := s.newPort(kind)
		p.Ending = func(*Life) { time.Sleep(time.Second) }
		for name, end := range map[string]func(v *Life){
			"close":  func(v *Life) { v.Close(rw) },
			"revoke": func(v *Life) { v.Revoke() },
		} {
			v := p.begin(1)
			<-v.Began()
			end(v.Life)
			if !v.Await(time.Millisecond) {
				t.Errorf("%s: it has not ended, and nothing of the device waits", name)
			}
			v = p.begin(1)
			<-v.Began()
			s.setHold()
			end(v.Life)
			begun := time.Now()
			if v.Await(time.Millisecond) || time.Since(begun) != time.Second+time.Millisecond {
				t.Errorf("%s: Await was over after %v", name, time.Since(begun))
			}
			if err := v.TellLate(); err == nil {
				t.Errorf("%s: it is late and tells nothing", name)
			}
			s.releaseHold()
			v.Await(time.Hour)
		}
	})
}

// TestACloseWakesAnOpenThatSleeps, and cancels before anything else is told.
func TestACloseWakesAnOpenThatSleeps(t *testing.T) {
	eachKind(t, func(t *testing.T, s *setup, kind devsw.Mode) {
		p := s.newPort(kind)
		s.setSleepOpens(true)
		v := p.begin(1)
		v.expect(t, lifeOpening)
		v.Close(rw)
		v.expect(t, lifeEnded)
		if !errors.Is(v.Err(), devsw.EBADF) {
			t.Errorf("Err is %v", v.Err())
		}
		s.check(t, "open", "cancel", "close")
	})
}

// TestALifeThatIsClosedAtTheLastMomentOpensNothing: when it has waited for all, and nothing stops
// it any more.
func TestALifeThatIsClosedAtTheLastMomentOpensNothing(t *testing.T) {
	eachKind(t, func(t *testing.T, s *setup, kind devsw.Mode) {
		p := s.newPort(kind)
		v := &Life{lives: p.Lives, node: s.fs.Node(kind, s.dev(kind)), began: make(chan struct{}), state: lifeClosing}
		v.Hold()
		v.open(t.Context())
		if !errors.Is(v.Err(), context.Canceled) {
			t.Errorf("Err is %v", v.Err())
		}
		s.lock(func() {
			if len(s.calls) > 0 {
				t.Errorf("the driver was called %q", s.calls)
			}
		})
	})
}

// TestNothingIsCancelledBeforeTheUserKnows that the Life ends: what comes back cancelled is its
// affair.
func TestNothingIsCancelledBeforeTheUserKnows(t *testing.T) {
	eachKind(t, func(t *testing.T, s *setup, kind devsw.Mode) {
		p := s.newPort(kind)
		know := make(chan struct{})
		p.Ending = func(*Life) { <-know }
		v := p.begin(1)
		<-v.Began()
		v.Close(rw)
		synctest.Wait()
		s.check(t, "open")
		close(know)
		v.expect(t, lifeEnded)
		s.check(t, "open", "cancel", "close")
	})
}

// TestALifeWaitsForACloseBySomebodyElse: its node was revoked with the device.
func TestALifeWaitsForACloseBySomebodyElse(t *testing.T) {
	eachKind(t, func(t *testing.T, s *setup, kind devsw.Mode) {
		p := s.newPort(kind)
		v := p.begin(1)
		<-v.Began()
		s.setHold()
		gone := start(func() error { s.fs.RevokeDevice(kind, s.dev(kind)); return nil })
		v.Close(rw)
		v.expect(t, lifeClosing)
		s.releaseHold()
		gone.mustGive(t, "RevokeDevice", nil)
		v.expect(t, lifeEnded)
	})
}

// TestAPortOfADeviceThatOthersHaveOpenEndsAlone: nothing is cancelled, and what it holds is waited
// for.
func TestAPortOfADeviceThatOthersHaveOpenEndsAlone(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		a, b := s.newPort(devsw.IFCHR), s.newPort(devsw.IFCHR)
		v, other := a.begin(1), b.begin(2)
		<-v.Began()
		<-other.Began()
		v.Hold()
		v.Close(rw)
		next := a.begin(3)
		next.expect(t, lifeWaiting)
		v.Release()
		next.expect(t, lifeOpen)
		other.expect(t, lifeOpen)
		next.Close(rw)
		next.expect(t, lifeEnded)
		other.Close(rw)
		other.expect(t, lifeEnded)
		calls := []string{"open", "open", "open", "cancel", "close"}
		s.check(t, calls...)
	})
}

// TestLivesModel goes through every order of begin, close, revoke, hold, release, and of what a
// driver does meanwhile: one port of a block device, two of a character device.
func TestLivesModel(t *testing.T) {
	for _, kind := range []devsw.Mode{devsw.IFBLK, devsw.IFCHR} {
		t.Run(kind.String(), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				bubble(t, func(t *testing.T) { runLives(t, rt, kind) })
			})
		})
	}
}

func runLives(t *testing.T, rt *rapid.T, kind devsw.Mode) {
	u := &unit{flag: devsw.DMPSafe, sleepOpens: true}
	s := &setup{unit: u, table: devsw.NewTable()}
	s.block, s.char = u.attach(t, s.table)
	s.fs = New(s.table)
	ports := []*port{s.newPort(kind)}
	if kind == devsw.IFCHR {
		ports = append(ports, s.newPort(kind))
	}
	mark := devsw.Flag(0)
	some := func(t *rapid.T, of func(*lived) bool) *lived {
		var all []*lived
		for _, p := range ports {
			for _, v := range p.had {
				if of(v) {
					all = append(all, v)
				}
			}
		}
		if len(all) == 0 {
			t.Skip()
		}
		return all[rapid.IntRange(0, len(all)-1).Draw(t, "life")]
	}
	state := func(v *lived) lifeState {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.state
	}
	asleep := func(v *lived) (is bool) {
		s.lock(func() {
			is = slices.ContainsFunc(u.sleepers, func(o *sleeper) bool { return o.flag == v.flag })
		})
		return is
	}
	closing := func() bool {
		s.fs.mu.Lock()
		defer s.fs.mu.Unlock()
		sd := s.fs.devs[devKey{kind, s.dev(kind)}]
		return sd != nil && sd.closing
	}
	end := func(v *lived, revoke bool) bool {
		v.port.mu.Lock()
		if !v.closed {
			v.opensNever = state(v) == lifeWaiting
		}
		v.closed = true
		v.port.mu.Unlock()
		if revoke {
			return v.Revoke()
		}
		return v.Close(rw)
	}
	each := func(*lived) bool { return true }
	actions := map[string]func(*rapid.T){
		"begin": func(t *rapid.T) {
			p := ports[rapid.IntRange(0, len(ports)-1).Draw(t, "port")]
			if n := len(p.had); n > 0 && !p.had[n-1].closed || mark > 20 {
				t.Skip()
			}
			mark++
			p.begin(mark)
		},
		"d_open returns": func(t *rapid.T) {
			v := some(t, asleep)
			v.decided = rapid.SampledFrom([]error{nil, nil, devsw.EIO}).Draw(t, "answer")
			u.decide(v.flag, v.decided)
		},
		"end": func(t *rapid.T) {
			v := some(t, each)
			was := v.closed
			if first := end(v, rapid.Bool().Draw(t, "revoke")); first == was {
				t.Fatalf("it is told %v, and the Life was closed before: %v", first, was)
			}
		},
		"hold": func(t *rapid.T) {
			v := some(t, func(v *lived) bool { return !v.closed || v.held > 0 })
			v.Hold()
			v.held++
		},
		"release": func(t *rapid.T) {
			v := some(t, func(v *lived) bool { return v.held > 0 })
			v.Release()
			v.held--
		},
		"transfer": func(t *rapid.T) {
			v := some(t, func(v *lived) bool { return kind == devsw.IFBLK && state(v) == lifeOpen && len(v.bufs) < 3 })
			b, _ := transfer(v.Node(), nil, stuckContext)
			v.bufs = append(v.bufs, b)
		},
		"transfer ends": func(t *rapid.T) {
			v := some(t, func(v *lived) bool { return len(v.bufs) > 0 })
			u.finish(v.bufs[0])
			v.bufs = v.bufs[1:]
		},
		"read": func(t *rapid.T) {
			v := some(t, func(v *lived) bool { return kind == devsw.IFCHR && state(v) == lifeOpen })
			start(func() error { return v.Node().Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), 0) })
		},
		"d_close sleeps": func(t *rapid.T) {
			if u.hold != nil {
				t.Skip()
			}
			u.setHold()
		},
		"d_close goes on": func(t *rapid.T) {
			if u.hold == nil {
				t.Skip()
			}
			u.releaseHold()
		},
		"await": func(t *rapid.T) {
			v := some(t, each)
			was := state(v)
			ended := v.Await(time.Millisecond)
			if ended != (was == lifeEnded) || v.Late() != (v.closed && !ended) {
				t.Fatalf("Await gives %v in state %d, late %v", ended, was, v.Late())
			}
		},
		"tell": func(t *rapid.T) {
			v := some(t, each)
			tells := state(v) == lifeLate && closing()
			if err := v.TellLate(); (err != nil) != tells {
				t.Fatalf("it tells %v, want something: %v", err, tells)
			}
		},
		"": func(t *rapid.T) {
			synctest.Wait()
			isClosing := closing()
			for _, p := range ports {
				before := false // a Life before has not ended
				for i, v := range p.had {
					at, told := state(v), fmt.Sprint(p.told(v))
					v.left = v.left || v.closed && !isClosing
					fail := func(what string) {
						t.Logf("Life %d, told %s, in state %d: %s (%+v)", i, told, at, what, v)
						t.Fatalf("Life %d, told %s, in state %d: %s (%+v)", i, told, at, what, v)
					}
					switch over := (v.opensNever || v.left) && v.held == 0 && !asleep(v); {
					case v.closed && over != (at == lifeEnded):
						fail("it has ended, or has not, against the model")
					case v.closed && !over && at < lifeClosing, !v.closed && at >= lifeClosing:
						fail("it is closing, or is not")
					case !v.closed && at == lifeWaiting && !before && !isClosing:
						fail("it waits for nothing")
					case !v.closed && at != lifeWaiting && before:
						fail("it has not waited")
					case at == lifeOpening && !asleep(v) && !isClosing:
						fail("it is opening for ever")
					case at == lifeOpen && v.decided != nil, at == lifeFailed && v.decided == nil:
						fail("it is open, or is not, whatever d_open has said")
					}
					before = before || v.closed && at != lifeEnded
					want := map[lifeState][]string{
						lifeWaiting: {"[]"}, lifeOpening: {"[flag]"}, lifeOpen: {"[flag opened began]"}, lifeFailed: {"[flag began]"},
						lifeEnded: {"[began ending ended]", "[ending began ended]", "[flag began ending ended]", "[flag ending began ended]",
							"[flag opened began ending ended]"},
					}[at]
					if want != nil && !slices.Contains(want, told) {
						fail("it was told something else")
					}
				}
			}
			u.lock(func() {
				if len(u.wrong) > 0 {
					t.Fatalf("promises broken: %v", u.wrong)
				}
			})
		},
	}
	rest := func() {
		u.setSleepOpens(false)
		for _, p := range ports {
			for _, v := range p.had {
				end(v, false)
				for ; v.held > 0; v.held-- {
					v.Release()
				}
				for _, b := range v.bufs {
					u.finish(b)
				}
				u.decide(v.flag, nil)
			}
		}
		if u.hold != nil {
			u.releaseHold()
		}
		synctest.Wait()
	}
	defer rest() // so that a failure shows as what it is
	rt.Repeat(actions)
	rest()
	for _, p := range ports {
		if p.ending.Count() != 0 {
			rt.Fatal("a Life has not ended")
		}
	}
	if n := len(s.fs.devs); n != 0 {
		rt.Fatalf("%d devices are remembered at the end", n)
	}
}

func (p *port) told(v *lived) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return v.told
}

// TestALifeIsToldOfARevoke: by whomever, while its device cannot be used any more and is not closed
// yet.
func TestALifeIsToldOfARevoke(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		told := 0
		lives := &Lives{FS: s.fs, Mode: devsw.IFCHR, Dev: s.char}
		lives.Revoked = func(l *Life) {
			if l.Node().Poll(0, nil) != devsw.POLLERR {
				t.Error("it can be used still")
			}
			if told == 0 {
				s.check(t, "open")
			}
			told++
		}
		l := lives.Begin()
		<-l.Began()
		s.fs.RevokeDevice(devsw.IFCHR, s.char)
		if told != 1 {
			t.Errorf("it was told %d times", told)
		}
		s.check(t, "open", "cancel", "close")
		l.Close(rw)
		<-l.Ended()
	})
}
