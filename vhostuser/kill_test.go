package vhostuser_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
)

// childEnv is set for the process that serves TestKilledProcessesLoseAndRepeatNothing, to the path
// of its socket.
const childEnv = "VHOSTUSERTEST_SERVE"

// serveAsChild is what such a process does, until it is killed or nobody is left at the other end
// of its standard input.
func serveAsChild(path string) {
	exit := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ln, err := vhostuser.Listen(path)
	if err != nil {
		exit(err)
	}
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{})
	if err != nil {
		exit(err)
	}
	b, err := vhostuser.New(vhostuser.Config{Device: &shuffler{newReverser(1)}, Reactors: reactors})
	if err != nil {
		exit(err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println("ready")
	exit(b.Serve(context.Background(), ln))
}

// startChild starts a process that serves path. It does not outlive this one.
func startChild(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+path)
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = child.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the process says %q, %v", line, err)
	}
	return child
}

// shuffler is a reverser that answers in any order, some much later than others.
type shuffler struct{ *reverser }

func (d *shuffler) Process(q *vhostuser.Queue) (more bool) {
	l := q.Data.(*lane)
	before := len(l.held)
	for range 8 {
		c := new(virtq.Chain)
		if !q.Pop(c) {
			break
		}
		l.held = append(l.held, c)
	}
	if len(l.held) == 0 || len(l.held) == before && rand.IntN(64) != 0 {
		return len(l.held) > 0
	}
	rand.Shuffle(len(l.held), func(i, k int) { l.held[i], l.held[k] = l.held[k], l.held[i] })
	keep := rand.IntN(len(l.held))
	for _, c := range l.held[keep:] {
		q.Push(c, d.answer(q, c))
	}
	l.held = l.held[:keep]
	return true
}

// A process that serves a ring under load is killed (SIGKILL) at any moment, and another one goes
// on from the in-flight region.
func TestKilledProcessesLoseAndRepeatNothing(t *testing.T) {
	const size = 64
	kills := 30
	if testing.Short() {
		kills = 5
	}
	mem := newMem(t)
	path := t.TempDir() + "/sock"
	var (
		ring       *vhostusertest.Ring
		region     *vhostusertest.Inflight
		bufs       []buffers
		free       []int                  // of bufs
		asked      = make(map[uint16]int) // which of bufs a head in flight has
		number     = make([]int, size/2)  // the request that a pair of buffers is used for
		done       int
		unanswered int
	)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range size / 2 {
		bufs, free = append(bufs, newBuffers(mem)), append(free, i)
	}
	add := func() {
		for len(free) > 0 {
			i := free[len(free)-1]
			number[i]++
			bufs[i].fill(number[i]*size + i)
			head, ok := ring.Add(bufs[i].in, bufs[i].out)
			if !ok {
				t.Fatal("no room")
			}
			free = free[:len(free)-1]
			asked[head] = i
		}
		must(ring.Notify())
	}
	take := func(head uint16) {
		i, ok := asked[head]
		if !ok {
			t.Fatalf("head %d was answered twice", head)
		}
		must(bufs[i].check(number[i]*size + i))
		delete(asked, head)
		free = append(free, i)
		done++
	}
	for n := range kills + 1 {
		child := startChild(t, path)
		f, err := vhostusertest.Dial(path)
		must(err)
		features, err := f.Handshake(vhostusertest.AllProtocolFeatures)
		must(err)
		must(f.SetFeatures(features))
		must(f.AddMemory(mem))
		if ring == nil {
			region, err = f.NewInflight(1, size)
			must(err)
			defer region.Close()
			ring, err = f.NewRing(mem, 0, size)
			must(err)
			defer ring.Close()
		} else {
			must(f.SetInflightFD(region))
			ring.Reconnect(f)
		}
		must(ring.Start())
		if n == kills {
			for len(asked) > 0 {
				head, _, err := ring.Wait()
				must(err)
				take(head)
			}
			f.Close()
			break
		}
		// Killed while it has its hands full.
		dead := make(chan error, 1)
		time.AfterFunc(time.Duration(rand.IntN(5000))*time.Microsecond, func() {
			_ = child.Process.Kill()
			dead <- child.Wait()
		})
		for alive := true; alive; {
			select {
			case <-dead:
				alive = false
			default:
				add()
			}
			for {
				head, _, ok := ring.Used()
				if !ok {
					break
				}
				take(head)
			}
		}
		unanswered += len(asked)
		f.Close()
	}
	t.Logf("%d requests, %d times one had no answer at a kill", done, unanswered)
	if unanswered == 0 {
		t.Error("every request was answered at every kill")
	}
}
