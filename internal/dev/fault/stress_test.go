package fault

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"vdev/devsw"
)

// TestEverythingAtOnceEnds has users, rules that come and go, releases and closes at the same time,
// on real goroutines: every transfer ends, with an error that has a reason, and so does every
// close.
func TestEverythingAtOnceEnds(t *testing.T) {
	allowed := map[devsw.Errno]bool{0: true, devsw.EIO: true, devsw.ENXIO: true, devsw.ECANCELED: true}
	for _, lower := range lowers {
		for name, attach := range map[string]func(*devsw.Table) (*Driver, error){"cancel": New, "no cancel": NewWithoutCancel} {
			t.Run(lower+" "+name, func(t *testing.T) {
				r := newRig(t, lower, Config{Cache: 16 << 10}, attach)
				var all sync.WaitGroup
				stop := make(chan struct{})
				every := func(f func(i int)) {
					all.Go(func() {
						for i := 0; ; i++ {
							select {
							case <-stop:
								return
							default:
								f(i)
								runtime.Gosched()
							}
						}
					})
				}
				for i := range 4 {
					rng := rand.New(rand.NewPCG(uint64(i), 1))
					p := bytes.Repeat([]byte{byte(i)}, 2048)
					every(func(int) {
						var err error
						switch at := rng.Int64N(100); rng.IntN(6) {
						case 0:
							err = r.flush()
						case 1:
							err = r.node.Discard(at*512, 512)
						case 2:
							err = asError(r.transfer(devsw.BWrite, devsw.BMediaFUA, at, p))
						case 3, 4:
							err = asError(r.transfer(devsw.BWrite, 0, at, p))
						default:
							err = asError(r.transfer(devsw.BRead, 0, at, p))
						}
						if e := devsw.ToErrno(err); !allowed[e] {
							t.Errorf("an operation ended with %v", err)
						}
					})
				}
				rules := []string{"hang:any:prob=0.3", "delay:any:time=1us-100us", "error:any:prob=0.2", "hang:any:uncancellable:count=3",
					"short:read", "crash:any:prob=0.1", "delay:cancel+close+open:time=1us", "error:open:prob=0.1", "crash:write:count=1:off"}
				every(func(i int) {
					if i%4 == 3 {
						_ = r.d.Control(0, FAULTCLEAR, nil)
						return
					}
					r.set(fmt.Sprintf("%s:seed=%d", rules[i%len(rules)], i))
				})
				every(func(int) { r.release(); r.state() })
				for i := range 60 {
					if r.node.Open(context.Background(), rw) != nil {
						continue
					}
					for before := r.state().Ops[Read]; r.state().Ops[Read] < before+uint64(i%10); {
						runtime.Gosched()
					}
					r.close()
				}
				close(stop)
				all.Wait()
				s := r.state()
				if len(s.Held) != 0 {
					t.Errorf("%+v are still held", s.Held)
				}
				t.Logf("operations: %v; injected: %v", s.Ops, s.Injected)
			})
		}
	}
}
