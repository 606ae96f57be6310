package line_test

import (
	"bytes"
	"context"
	"fmt"

	"vdev/devsw"
	"vdev/devsw/line"
	"vdev/specfs"
)

// shout answers what is written to it, in capitals. It reads nothing of its own accord: its input
// is put into a queue, which is bounded. While that is full Writev waits, and so, in the end, does
// who writes to the line.
type shout struct {
	line.Base
	answers *line.Queue
}

func newShout() *shout {
	s := new(shout)
	s.answers = line.NewQueue(4096, s.Ready)
	return s
}

// Writev implements line.End.
func (s *shout) Writev(p [][]byte) (n int, err error) {
	for _, b := range p {
		k, err := s.answers.Put(bytes.ToUpper(b))
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Readv implements line.Input.
func (s *shout) Readv(p [][]byte) (int, error) { return s.answers.Readv(p) }

// Close implements line.End.
func (s *shout) Close() {
	s.answers.Close()
	fmt.Println("closed")
}

// A driver with one device, whose other side is an End of one's own.
func Example() {
	table := devsw.NewTable()
	driver, err := line.Attach(table, "shout", devsw.NODEVMAJOR)
	if err != nil {
		panic(err)
	}
	l := line.New(line.Config{Overflow: line.Wait})
	if err := l.Add(newShout(), "shout", line.Main); err != nil {
		panic(err)
	}
	dev, err := driver.Create(0, l)
	if err != nil {
		panic(err)
	}

	const rw = devsw.FREAD | devsw.FWRITE
	node := specfs.New(table).Node(devsw.IFCHR, dev)
	if err := node.Open(context.Background(), rw); err != nil {
		panic(err)
	}
	if err := node.Write(devsw.NewUio(devsw.UIOWrite, []byte("hello")), rw); err != nil {
		panic(err)
	}
	answer := make([]byte, 100)
	u := devsw.NewUio(devsw.UIORead, answer)
	if err := node.Read(u, rw); err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", answer[:len(answer)-u.Resid])

	if err := node.Close(rw); err != nil {
		panic(err)
	}
	if err := driver.Detach(); err != nil {
		panic(err)
	}
	// Output:
	// HELLO
	// closed
}
