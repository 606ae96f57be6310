package terminal

import (
	"io"
	"sync"
)

// ahead is how much is read of a terminal before it is taken, in bytes: more than anybody types or
// pastes. Then reading waits, and so does Ctrl-].
const ahead = 1 << 20

// CopyTo writes what is typed to w. It reads on while w waits, so that Ctrl-] is seen whatever w
// does. It calls ended, on any goroutine and perhaps more than once, when no more is typed: with
// ErrEscape, or io.EOF where the terminal has gone, at once; with the io.EOF of an input that is no
// terminal when all of it has been written; else with what Read or w has failed with. Unless it is
// io.EOF of such an input, ended is to close t. What was typed before is still written then, for as
// long as w takes it. CopyTo returns when nothing goes on any more.
func (t *Terminal) CopyTo(w io.Writer, ended func(error)) {
	k := &keys{most: ahead}
	if !t.tty {
		k.most = 1 // nobody types Ctrl-]: what is not wanted yet is to stay where it is
	}
	k.changed = sync.NewCond(&k.mu)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer t.restore() // for a panic
		err := k.fill(t)
		if err != io.EOF || t.tty {
			ended(err)
		}
		k.stop(err)
	})
	err := k.drain(w)
	k.stop(err)
	ended(err)
	reader.Wait()
}

// keys is what was typed and not taken.
type keys struct {
	most    int // bytes: no more is read once there are so many
	mu      sync.Mutex
	changed *sync.Cond
	typed   []byte
	err     error // no more comes, or none is taken any more
}

func (k *keys) stop(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.err = err
	}
	k.changed.Broadcast()
}

// fill reads until that fails.
func (k *keys) fill(r io.Reader) error {
	p := make([]byte, 4096)
	for {
		n, err := r.Read(p)
		if err != nil {
			return err
		}
		k.mu.Lock()
		k.typed = append(k.typed, p[:n]...)
		k.changed.Broadcast()
		for len(k.typed) >= k.most && k.err == nil {
			k.changed.Wait()
		}
		err = k.err
		k.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// drain writes until that fails, or until no more comes and all is written.
func (k *keys) drain(w io.Writer) error {
	var p []byte
	for {
		k.mu.Lock()
		for len(k.typed) == 0 && k.err == nil {
			k.changed.Wait()
		}
		// The two take turns in being filled. What a paste took is not kept.
		p, k.typed = k.typed, p[:0]
		if cap(k.typed) > 1<<16 {
			k.typed = nil
		}
		err := k.err
		k.changed.Broadcast()
		k.mu.Unlock()
		if err != nil && len(p) == 0 {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
}
