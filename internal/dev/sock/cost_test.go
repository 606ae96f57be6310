package sock

import (
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"vdev/devsw"
	"vdev/devsw/line"
)

// knote attaches a knote. What is returned has something when it was activated.
func (r *rig) knote(f devsw.Filter) (activated chan struct{}) {
	r.Helper()
	activated = make(chan struct{}, 1)
	kn := &devsw.Knote{Filter: f, Activate: func(int64) {
		select {
		case activated <- struct{}{}:
		default:
		}
	}}
	must(r, r.node.Kqfilter(kn))
	r.Cleanup(kn.Detach)
	return activated
}

// TestInputAllocatesNothing, also where a read finds nothing and waits to be told.
func TestInputAllocatesNothing(t *testing.T) {
	on(t, func(t *testing.T, sc Config) {
		r := newRig(t, line.Config{}, sc)
		activated := r.knote(devsw.EVFILTRead)
		c := r.dial()
		r.attached(1)
		p, in := make([]byte, 16), make([]byte, 4096)
		u := &devsw.Uio{Rw: devsw.UIORead}
		iov := make([][]byte, 1)
		read := func() error {
			iov[0] = in
			u.Iov, u.Resid = iov, len(in)
			return r.node.Read(u, nb)
		}
		echo := func() {
			if _, err := c.Write(p); err != nil {
				t.Fatal(err)
			}
			for {
				err := read()
				if err == nil {
					break
				}
				if err != devsw.EAGAIN {
					t.Fatal(err)
				}
				<-activated
			}
			for read() == nil {
			}
		}
		echo()
		if a := testing.AllocsPerRun(500, echo); a != 0 {
			t.Errorf("%v allocations", a)
		}
	})
}

// TestOutputAllocatesNothing, whether it is copied or given to the client directly.
func TestOutputAllocatesNothing(t *testing.T) {
	on(t, func(t *testing.T, sc Config) {
		r := newRig(t, line.Config{Overflow: line.Wait}, sc)
		c := r.dial()
		r.attached(1)
		for _, n := range []int{16, 32 << 10} {
			p, back := make([]byte, n), make([]byte, n)
			u, iov := &devsw.Uio{Rw: devsw.UIOWrite}, make([][]byte, 1)
			once := func() {
				iov[0] = p
				u.Iov, u.Resid = iov, n
				if err := r.node.Write(u, nb); err != nil || u.Resid > 0 {
					t.Fatal(u.Resid, err)
				}
				if _, err := io.ReadFull(c, back); err != nil {
					t.Fatal(err)
				}
			}
			once()
			if a := testing.AllocsPerRun(500, once); a != 0 {
				t.Errorf("%d bytes: %v allocations", n, a)
			}
		}
	})
}

// BenchmarkOutput is d_write without waiting, on a data line, with a client that reads everything.
func BenchmarkOutput(b *testing.B) {
	for _, n := range []int{128, 4096, 32768} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, line.Config{Overflow: line.Wait}, Config{Network: "unix", Address: filepath.Join(b.TempDir(), "s")})
			activated := r.knote(devsw.EVFILTWrite)
			c := r.dial()
			r.attached(1)
			read := make(chan int64)
			go func() {
				n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 64<<10))
				read <- n
			}()
			p := make([]byte, n)
			u := &devsw.Uio{Rw: devsw.UIOWrite}
			iov := make([][]byte, 1)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			total := int64(0)
			for b.Loop() {
				iov[0] = p
				u.Iov, u.Resid = iov, n
				for total += int64(n); u.Resid > 0; {
					if err := r.node.Write(u, nb); err == devsw.EAGAIN {
						<-activated
					} else if err != nil {
						b.Fatal(err)
					}
				}
			}
			must(b, r.line.Drain(b.Context()))
			r.sock.Close()
			if got := <-read; got != total {
				b.Errorf("%d bytes were read of %d", got, total)
			}
		})
	}
}

// BenchmarkInput is d_read without waiting, with a client that writes all the time.
func BenchmarkInput(b *testing.B) {
	for _, n := range []int{128, 4096, 32768} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, line.Config{Overflow: line.Wait}, Config{Network: "unix", Address: filepath.Join(b.TempDir(), "s")})
			activated := r.knote(devsw.EVFILTRead)
			c := r.dial()
			r.attached(1)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for p := make([]byte, 64<<10); ; {
					if _, err := c.Write(p); err != nil {
						return
					}
				}
			}()
			p := make([]byte, n)
			u := &devsw.Uio{Rw: devsw.UIORead}
			iov := make([][]byte, 1)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				iov[0] = p
				u.Iov, u.Resid = iov, n
				for u.Resid > 0 {
					if err := r.node.Read(u, nb); err == devsw.EAGAIN {
						<-activated
					} else if err != nil {
						b.Fatal(err)
					}
				}
			}
			c.Close()
			<-ended
		})
	}
}
