// Package linetest has the guest's side of a line, for tests of what is at the other side.
package linetest

import (
	"context"
	"strings"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/devsw/line"
)

// Guest is who has a line's device open.
type Guest struct {
	Line *line.Line

	t     testing.TB
	table *devsw.Table
	dev   devsw.Dev
	tells chan struct{}
}

const rw = devsw.FREAD | devsw.FWRITE

// New makes a line, and opens its device. The test's end closes both, and fails where the line does
// not come to an end.
func New(t testing.TB, conf line.Config) *Guest {
	t.Helper()
	g := &Guest{Line: line.New(conf), t: t, table: devsw.NewTable(), tells: make(chan struct{}, 1)}
	d, err := line.Attach(g.table, "test", devsw.NODEVMAJOR)
	g.must(err)
	g.dev, err = d.Create(0, g.Line)
	g.must(err)
	g.must(g.table.CdevOpen(g.dev, rw, devsw.IFCHR))
	var notes []*devsw.Knote
	for _, f := range []devsw.Filter{devsw.EVFILTRead, devsw.EVFILTWrite, devsw.EVFILTLine} {
		kn := &devsw.Knote{Filter: f, Activate: func(int64) {
			select {
			case g.tells <- struct{}{}:
			default:
			}
		}}
		g.must(g.table.CdevKqfilter(g.dev, kn))
		notes = append(notes, kn)
	}
	t.Cleanup(func() {
		for _, kn := range notes {
			kn.Detach()
		}
		g.must(g.table.CdevClose(g.dev, rw, devsw.IFCHR))
		g.must(d.Detach())
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		g.must(g.Line.Wait(ctx))
	})
	return g
}

func (g *Guest) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// TryWrite writes what is taken at once, and returns how much that is.
func (g *Guest) TryWrite(text string) int {
	g.t.Helper()
	u := devsw.NewUio(devsw.UIOWrite, []byte(text))
	if err := g.table.CdevWrite(g.dev, u, rw|devsw.FNONBLOCK); err != nil && err != devsw.EAGAIN {
		g.t.Fatal(err)
	}
	return len(text) - u.Resid
}

// Write writes all of text, waiting for room where that is needed.
func (g *Guest) Write(text string) {
	g.t.Helper()
	g.Await("room", func() bool {
		text = text[g.TryWrite(text):]
		return text == ""
	})
}

// TryRead reads what is there, at most n bytes.
func (g *Guest) TryRead(n int) string {
	g.t.Helper()
	p := make([]byte, n)
	u := devsw.NewUio(devsw.UIORead, p)
	if err := g.table.CdevRead(g.dev, u, rw|devsw.FNONBLOCK); err != nil && err != devsw.EAGAIN {
		g.t.Fatal(err)
	}
	return string(p[:n-u.Resid])
}

// Read reads want, and nothing else.
func (g *Guest) Read(want string) {
	g.t.Helper()
	var got strings.Builder
	g.Await("input", func() bool {
		for got.Len() < len(want) {
			s := g.TryRead(len(want) - got.Len())
			if s == "" {
				return false
			}
			got.WriteString(s)
		}
		return true
	})
	if got.String() != want {
		g.t.Fatalf("read %q, want %q", got.String(), want)
	}
}

// Attached tells whether somebody is at the other side.
func (g *Guest) Attached() bool {
	g.t.Helper()
	return g.table.CdevPoll(g.dev, 0, nil)&devsw.POLLHUP == 0
}

// Size is that of the window; zero: none.
func (g *Guest) Size() (size devsw.Winsize) {
	g.t.Helper()
	if err := g.table.CdevIoctl(g.dev, devsw.TIOCGWINSZ, &size, rw); err != nil && err != devsw.ENOTTY {
		g.t.Fatal(err)
	}
	return size
}

// Await waits until so holds. It looks each time that the line tells something.
func (g *Guest) Await(what string, so func() bool) {
	g.t.Helper()
	late := time.After(time.Minute)
	for !so() {
		select {
		case <-g.tells:
		case <-late:
			g.t.Fatalf("still not so: %s", what)
		}
	}
}
