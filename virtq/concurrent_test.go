package virtq_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// signal sends a notification as writing to an eventfd does: any number of them before the next
// wait are one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// TestOneSideSeesTheOther holds the two pairs of store and load against each other that
// notifications rest on, again and again at the same moment: whoever comes second must see what the
// first did. It ends after a number of rounds, or early where the host is too busy to run both
// sides at once.
func TestOneSideSeesTheOther(t *testing.T) {
	const rounds = 100_000
	for _, features := range []uint64{0, modern} {
		t.Run(fmt.Sprintf("features=%#x", features), func(t *testing.T) {
			r := newRing(t, 4, features)
			seg := []virtqtest.Seg{r.seg(8)}
			var driverAt, deviceAt atomic.Uint32 // how far each side is
			var stop atomic.Bool
			// meet waits for the other side, and then a little by chance.
			meet := func(mine, others *atomic.Uint32, rng *rand.Rand) {
				n := mine.Add(1)
				for i := 1; others.Load() < n; i++ {
					if i%1000 == 0 {
						runtime.Gosched()
					}
				}
				for n := rng.IntN(100); n > 0; n-- {
					others.Load()
				}
			}
			var kick, pendingKick, call, pendingCall []bool
			end := time.Now().Add(2 * time.Second)
			var wg sync.WaitGroup
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(1, 1))
				for i := 0; !stop.Load(); i++ {
					r.driver.DisableCalls()
					r.driver.Add(seg, nil)
					stop.Store(i == rounds || time.Now().After(end))
					meet(&driverAt, &deviceAt, rng)
					kick = append(kick, r.driver.Kick())
					meet(&driverAt, &deviceAt, rng)
					pendingCall = append(pendingCall, r.driver.EnableCalls())
					meet(&driverAt, &deviceAt, rng)
					r.driver.Used()
				}
			})
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(2, 2))
				var c virtq.Chain
				for last := false; !last; {
					r.queue.DisableNotify()
					meet(&deviceAt, &driverAt, rng)
					last = stop.Load()
					pendingKick = append(pendingKick, r.queue.EnableNotify())
					meet(&deviceAt, &driverAt, rng)
					if ok, err := r.queue.Pop(&c); ok {
						r.queue.Push(&c, 0)
					} else {
						t.Errorf("Pop = %v, %v", ok, err)
					}
					call = append(call, r.queue.Publish())
					meet(&deviceAt, &driverAt, rng)
				}
			})
			wg.Wait()
			both := 0
			for i := range kick {
				if !kick[i] && !pendingKick[i] {
					t.Fatalf("round %d: no kick, and the device saw nothing", i)
				}
				if !call[i] && !pendingCall[i] {
					t.Fatalf("round %d: no call, and the driver saw nothing", i)
				}
				if call[i] && pendingCall[i] {
					both++
				}
			}
			t.Logf("in %d of %d rounds both saw the other", both, len(kick))
		})
	}
}

// TestNoWakeUpIsLost lets a driver and a device run against each other, each sleeping whenever it
// has nothing to do and being woken only by notifications that were asked for. A lost one leaves
// both asleep, which the bubble reports as a deadlock. Each request carries a number, and comes
// back with it.
func TestNoWakeUpIsLost(t *testing.T) {
	total := 100_000
	if testing.Short() {
		total = 10_000
	}
	for _, features := range []uint64{0, modern} {
		for _, size := range []int{1, 16, 256} {
			t.Run(fmt.Sprintf("features=%#x/size=%d", features, size), func(t *testing.T) {
				r := newRing(t, size, features)
				r.driver.DisableCalls()
				synctest.Test(t, func(t *testing.T) {
					kick, call := make(chan struct{}, 1), make(chan struct{}, 1)
					done := make(chan error, 1)
					kicks, calls := 0, 0
					go func() { done <- r.device(total, kick, call, &calls) }()
					r.drive(t, total, kick, call, &kicks)
					if err := <-done; err != nil {
						t.Error(err)
					}
					t.Logf("%d requests, %d kicks, %d calls", total, kicks, calls)
				})
			})
		}
	}
}

// drive makes total requests of 8 bytes each way, as many at once as chance has it.
func (r *ring) drive(t *testing.T, total int, kick, call chan struct{}, kicks *int) {
	size := r.size()
	rng := rand.New(rand.NewPCG(1, uint64(size)))
	base := r.mem.Alloc(uint64(16*size), 16)
	numbers := make([]uint64, size) // of each head
	free := make([]uint64, 0, size)
	slot := make([]uint64, size)
	for i := range size {
		free = append(free, base+uint64(16*i))
	}
	sent, back := 0, 0
	var segs [2]virtqtest.Seg
	for back < total {
		for n := rng.IntN(size + 1); n >= 0 && sent < total && len(free) > 0; n-- {
			at := free[len(free)-1]
			segs = [2]virtqtest.Seg{{Addr: at, Len: 8}, {Addr: at + 8, Len: 8}}
			var head uint16
			var ok bool
			if size == 1 {
				// One descriptor is not enough for both ways: the number goes and comes in one
				// writable buffer.
				head, ok = r.driver.Add(nil, []virtqtest.Seg{{Addr: at, Len: 16}})
			} else {
				head, ok = r.driver.Add(segs[:1], segs[1:])
			}
			if !ok {
				break
			}
			free = free[:len(free)-1]
			binary.LittleEndian.PutUint64(r.mem.Bytes(at, 8), uint64(sent))
			numbers[head], slot[head] = uint64(sent), at
			sent++
		}
		if r.driver.Kick() {
			*kicks++
			signal(kick)
		}
		for {
			head, written, ok := r.driver.Used()
			if !ok {
				break
			}
			at := slot[head]
			if got := binary.LittleEndian.Uint64(r.mem.Bytes(at+8, 8)); written == 0 || got != ^numbers[head] {
				t.Errorf("request %d came back with %d, %d written", numbers[head], ^got, written)
				return
			}
			free = append(free, at)
			back++
		}
		if back < sent && (sent == total || len(free) == 0 || rng.IntN(4) == 0) {
			if !r.driver.EnableCalls() {
				<-call
			}
			r.driver.DisableCalls()
		}
	}
}

// device answers total requests, with some of them kept back for a while.
func (r *ring) device(total int, kick, call chan struct{}, calls *int) error {
	rng := rand.New(rand.NewPCG(2, uint64(r.size())))
	idle := []*virtq.Chain{}
	for range r.size() {
		idle = append(idle, new(virtq.Chain))
	}
	var flight []*virtq.Chain
	for served := 0; served < total; {
		took := false
		for len(idle) > 0 {
			c := idle[len(idle)-1]
			ok, err := r.queue.Pop(c)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			took = true
			idle = idle[:len(idle)-1]
			flight = append(flight, c)
		}
		keep := 0
		if took {
			keep = rng.IntN(len(flight) + 1)
		}
		for len(flight) > keep {
			i := rng.IntN(len(flight))
			c := flight[i]
			flight[i] = flight[len(flight)-1]
			flight = flight[:len(flight)-1]
			var number, answer []byte
			if len(c.Readable) > 0 {
				number, answer = c.Readable[0], c.Writable[0]
			} else {
				number, answer = c.Writable[0][:8], c.Writable[0][8:]
			}
			binary.LittleEndian.PutUint64(answer, ^binary.LittleEndian.Uint64(number))
			r.queue.Push(c, 8)
			idle = append(idle, c)
			served++
			if rng.IntN(8) == 0 {
				r.queue.Show() // which calls nobody
			}
		}
		if r.queue.Publish() {
			*calls++
			signal(call)
		}
		if took || len(flight) > 0 {
			if rng.IntN(8) == 0 {
				runtime.Gosched()
			}
			continue
		}
		if served < total && !r.queue.EnableNotify() {
			<-kick
		}
		r.queue.DisableNotify()
	}
	return r.queue.Broken()
}
