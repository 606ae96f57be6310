// Package logfile is the end of a line that is a file: what a guest writes to a console is appended
// to it, with the time of each line if that is wanted. It has no input.
//
// # The file
//
// With Config.MaxSize the file never gets larger than that: it becomes FILE.1, what was FILE.1
// becomes FILE.2, and so on, and a new one is begun, between two lines where that is possible.
// Reopen is for those who rename the file themselves, such as logrotate(8).
//
// An error of the host, such as a full disk, is told once, and what has failed is tried again until
// it works. Nothing is lost meanwhile but what the line itself has no room for.
//
// # Concurrency
//
// All calls of the host on the file but those of Open are made by one goroutine, which belongs to
// the File. A file system that does not answer holds up that goroutine, and nobody else: neither
// Writev, once Close was called, nor Close. The goroutine ends, and closes the file, when the file
// system answers.
package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"vdev/devsw/line"
	"vdev/internal/sys"
)

// defaultFiles is Config.MaxFiles where that is 0.
const defaultFiles = 5

// Config describes a log file.
type Config struct {
	Path string
	// Timestamps: before each line stands the time (RFC 3339) at which its first byte came to the
	// File, and CR LF becomes LF.
	Timestamps bool
	MaxSize    int64 // bytes; 0: it grows without limit. Not for what is no regular file
	MaxFiles   int   // of MaxSize, with the one that is written to; 0: 5
	// Log is told, if it is not nil, when writing has begun to fail, and when it works again (err
	// is nil then). It must not wait.
	Log func(msg string, err error)
}

// Status tells of a File.
type Status struct {
	Size     int64 // of the file that is written to, bytes
	Failures int64 // how often the host has refused something
	Failing  bool  // it did so the last time
}

// File is the End. Add it to a line, or call Close. Reopen, Status and Wait may be called on any
// goroutine.
type File struct {
	line.Base
	conf Config

	stamp stamper // of Writev

	work   chan []byte   // from Writev, which waits for wrote
	wrote  chan struct{} // has room for one
	reopen chan struct{} // has room for one
	closed chan struct{}
	ended  chan struct{} // closed when the goroutine has ended
	close  sync.Once

	// Of the goroutine.
	fd   *sys.FD // nil: to be opened
	part bool    // the file ends within a line

	size     atomic.Int64
	failures atomic.Int64
	failing  atomic.Bool
}

// retry is the time after which what has failed is tried again.
var retry = time.Second

// Open opens the file, and makes one where there is none.
func Open(conf Config) (*File, error) {
	if conf.MaxFiles == 0 {
		conf.MaxFiles = defaultFiles
	}
	f := &File{conf: conf, stamp: stamper{on: conf.Timestamps, now: time.Now},
		work: make(chan []byte), wrote: make(chan struct{}, 1), reopen: make(chan struct{}, 1),
		closed: make(chan struct{}), ended: make(chan struct{})}
	regular, err := f.open()
	if err == nil && !regular && conf.MaxSize > 0 {
		f.fd.Close()
		err = errors.New("is no regular file, so it cannot have a largest size")
	}
	if err != nil {
		return nil, fmt.Errorf("log file %s: %w", conf.Path, bare(err))
	}
	f.stamp.apart = f.part
	go f.run()
	return f, nil
}

// bare takes the path out of an error that is told with it.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// open opens the file, and finds out where it ends.
func (f *File) open() (regular bool, err error) {
	fd, err := sys.OpenAppend(f.conf.Path, 0o640)
	if err != nil {
		return false, err
	}
	size, regular, err := fd.Size()
	if err != nil {
		fd.Close()
		return false, err
	}
	if !regular {
		size = 0
	}
	last := [1]byte{'\n'}
	if size > 0 {
		if _, errno := sys.Preadv(fd.Int(), [][]byte{last[:]}, size-1); errno != 0 {
			fd.Close()
			return false, errno
		}
	}
	f.fd, f.part = fd, last[0] != '\n'
	f.size.Store(size)
	return regular, nil
}

// Reopen closes the file and opens what is at its path by then. It does not wait for that.
func (f *File) Reopen() {
	select {
	case f.reopen <- struct{}{}:
	default: // it is about to
	}
}

// Status tells how it is.
func (f *File) Status() Status {
	return Status{Size: f.size.Load(), Failures: f.failures.Load(), Failing: f.failing.Load()}
}

// Close implements line.End.
func (f *File) Close() { f.close.Do(func() { close(f.closed) }) }

// Ended is closed, after Close, when the file is closed too. A file system that does not answer may
// have that wait without end.
func (f *File) Ended() <-chan struct{} { return f.ended }

// chunk is how much Writev hands over at once, in bytes, but for the last line's time.
const chunk = 32 << 10

// chunks are buffers for that. While nothing is written there are none.
var chunks = sync.Pool{New: func() any { return new([]byte) }}

// Writev implements line.End.
func (f *File) Writev(p [][]byte) (n int, err error) {
	buf := chunks.Get().(*[]byte)
	b := (*buf)[:0]
	for _, q := range p {
		k := 0
		b, k = f.stamp.append(b, q)
		if n += k; k < len(q) {
			break
		}
	}
	if len(b) > 0 {
		select {
		case f.work <- b:
		case <-f.closed:
			return 0, os.ErrClosed
		}
		select {
		case <-f.wrote:
		case <-f.closed:
			return 0, os.ErrClosed // b is the goroutine's for ever
		}
	}
	*buf = b
	chunks.Put(buf)
	return n, nil
}

// stamper puts times before lines.
type stamper struct {
	on     bool
	now    func() time.Time
	apart  bool // what was in the file before ends within a line
	within bool // within a line
	cr     bool // a CR has come: it is dropped if an LF follows
}

// layout is RFC 3339 with milliseconds.
const layout = "2006-01-02T15:04:05.000Z07:00 "

// append appends what is to be written for p to b, until b has a chunk. It tells how much of p that
// is.
func (s *stamper) append(b, p []byte) ([]byte, int) {
	if !s.on {
		n := min(len(p), max(0, chunk-len(b)))
		return append(b, p[:n]...), n
	}
	for i, c := range p {
		if len(b) >= chunk {
			return b, i
		}
		if s.cr && c != '\n' {
			b = append(b, '\r')
		}
		s.cr = false
		if s.apart {
			b = append(b, '\n')
			s.apart = false
		}
		if !s.within {
			b = s.now().AppendFormat(b, layout)
			s.within = true
		}
		if c == '\r' {
			s.cr = true
			continue
		}
		b = append(b, c)
		s.within = c != '\n'
	}
	return b, len(p)
}

// run is the goroutine.
func (f *File) run() {
	defer close(f.ended)
	defer func() {
		if f.fd != nil {
			f.fd.Close()
		}
	}()
	for {
		select {
		case <-f.closed:
			return
		case <-f.reopen:
			f.again()
			f.until(f.ready)
		case b := <-f.work:
			for len(b) > 0 {
				ok := f.until(func() (err error) {
					b, err = f.write(b)
					return err
				})
				if !ok {
					break
				}
			}
			f.wrote <- struct{}{}
		}
	}
}

// again has the file opened again.
func (f *File) again() {
	if f.fd != nil {
		f.fd.Close()
		f.fd = nil
	}
}

// until calls do until that succeeds, which it tells, or Close was called.
func (f *File) until(do func() error) bool {
	for {
		err := do()
		if err == nil {
			if f.failing.Swap(false) {
				f.tell("is written again", nil)
			}
			return true
		}
		f.failures.Add(1)
		if !f.failing.Swap(true) {
			f.tell("cannot be written; that is tried again and again", bare(err))
		}
		again := time.NewTimer(retry)
		select {
		case <-f.closed:
			again.Stop()
			return false
		case <-f.reopen:
			again.Stop()
			f.again()
		case <-again.C:
		}
	}
}

func (f *File) tell(msg string, err error) {
	if f.conf.Log != nil {
		f.conf.Log("log file "+f.conf.Path+" "+msg, err)
	}
}

// ready opens the file if it is not open.
func (f *File) ready() error {
	if f.fd != nil {
		return nil
	}
	_, err := f.open()
	return err
}

// write writes as much of b as the file and the host take at once, and returns the rest.
func (f *File) write(b []byte) (rest []byte, err error) {
	if err := f.ready(); err != nil {
		return b, err
	}
	n := len(b)
	if f.conf.MaxSize > 0 {
		if n = cut(b, f.size.Load(), f.conf.MaxSize, f.part); n == 0 {
			return b, f.rotate()
		}
	}
	n, errno := sys.Writev(f.fd.Int(), [][]byte{b[:n]})
	switch {
	case errno != 0:
		return b, errno
	case n == 0:
		return b, io.ErrShortWrite
	}
	f.size.Add(int64(n))
	f.part = b[n-1] != '\n'
	return b[n:], nil
}

// cut tells how much of b goes to a file for most bytes that has size, and that ends within a line
// if part is true. 0: the file is full. It cuts between two lines. What it cannot cut so is a line
// that has begun in the file, or that no file has room for.
func cut(b []byte, size, most int64, part bool) int {
	room := max(0, most-size)
	if int64(len(b)) <= room {
		return len(b)
	}
	if i := bytes.LastIndexByte(b[:room], '\n'); i >= 0 {
		return i + 1
	}
	if size > 0 && !part {
		return 0
	}
	return int(room)
}

// rotate renames the files, so that there is none at the path. It stops at an error, and goes on
// there the next time.
func (f *File) rotate() error {
	name := func(i int) string {
		if i == 0 {
			return f.conf.Path
		}
		return f.conf.Path + "." + strconv.Itoa(i)
	}
	// The first number that is free, or the last one, which goes. Those above it have moved.
	free := 1
	for ; free < f.conf.MaxFiles-1; free++ {
		if _, err := os.Lstat(name(free)); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	var err error
	if f.conf.MaxFiles == 1 {
		err = os.Remove(f.conf.Path)
	}
	for i := min(free, f.conf.MaxFiles-1); i > 0 && err == nil; i-- {
		err = os.Rename(name(i-1), name(i))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f.again()
	return nil
}
