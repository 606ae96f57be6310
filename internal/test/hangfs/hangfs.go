// Package hangfs is a file system that stops answering on command, for tests of what uses one. It
// is a FUSE file system whose server is the calling process, and shows the files of a folder.
//
// # Holding
//
// A request of a Kind that is held waits in the server, and whoever made it waits in the kernel,
// until the Kind is released. Only then is it carried out. So a read that was held gives what the
// file has when it is released, and a write has the data that the kernel sent with the request.
//
// What the server sees is what the kernel makes of a transfer: the reads of the page cache, with
// its reading ahead, but for Config.Direct; writes as large as Config.MaxWrite, and with
// Config.Writeback those of the page cache, later.
//
// # In the same process
//
// The calling process must not open the files by package os. The Go runtime then asks whether it
// can wait for such a file; the server has to answer that, and other goroutines wait meanwhile.
// sys.OpenFile does not ask.
package hangfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"vdev/internal/sys"
)

// Kind is what a request asks for.
type Kind uint8

// The kinds of requests that can be held.
const (
	Look      Kind = iota // LOOKUP and GETATTR
	Open                  // OPEN
	Read                  // READ
	Write                 // WRITE
	Fsync                 // FSYNC, of fdatasync(2) as well
	Flush                 // FLUSH: each close(2) waits for it
	Fallocate             // FALLOCATE
	kinds
)

var kindNames = [kinds]string{"look", "open", "read", "write", "fsync", "flush", "fallocate"}

// String gives the name that ParseKind takes.
func (k Kind) String() string { return kindNames[k] }

// Kinds are all of them.
func Kinds() []Kind {
	all := make([]Kind, kinds)
	for k := range all {
		all[k] = Kind(k)
	}
	return all
}

// ParseKind gives the Kind of this name: "look", "open", "read", "write", "fsync", "flush" or
// "fallocate".
func ParseKind(name string) (Kind, error) {
	if i := slices.Index(kindNames[:], name); i >= 0 {
		return Kind(i), nil
	}
	return 0, fmt.Errorf("hangfs: %q is none of %s", name, strings.Join(kindNames[:], ", "))
}

// Config says what the file system is like.
type Config struct {
	// each file is opened with FOPEN_DIRECT_IO: transfers pass the page cache by, and use their
	// memory's pages
	Direct    bool
	Writeback bool // writes end in the page cache (FUSE_WRITEBACK_CACHE)
	// a request that is held ends with EINTR when the kernel asks for it (FUSE_INTERRUPT)
	Interrupt bool
	MaxWrite  int  // the longest read or write, in bytes; 0: 128 KiB
	Rigid     bool // there is no FALLOCATE: it ends with ENOSYS
}

// Event is a request that has come.
type Event struct {
	Kind  Kind
	Path  string // below the folder
	Off   int64  // bytes; of Read, Write and Fallocate
	Len   int64  // bytes asked for; of the same
	Began time.Time

	Held  bool      // it had to wait
	Ended time.Time // when it was answered; zero until then
	Errno syscall.Errno
}

// FS is a mounted file system. Its methods may be called on any goroutine.
type FS struct {
	conf  Config
	point string
	root  fusefs.InodeEmbedder
	ended chan struct{} // closed when nothing is served any more

	mu      sync.Mutex
	held    [kinds]chan struct{} // closed by Release; nil where the Kind is not held
	waiting [kinds]int
	fails   [kinds]syscall.Errno // see Fail
	changed chan struct{}        // closed, and made anew, when waiting changes
	events  []*Event
	open    map[*handle]struct{}
	closed  bool
}

// ErrUnavailable is wrapped by Mount's errors where this host or this user cannot mount a FUSE file
// system at all.
var ErrUnavailable = errors.New("no FUSE file system can be mounted here")

// Mount shows the files of folder dir in the empty folder point until Close.
func Mount(dir, point string, conf Config) (*FS, error) {
	if conf.MaxWrite == 0 {
		conf.MaxWrite = 128 << 10
	}
	f := &FS{conf: conf, point: point, ended: make(chan struct{}), changed: make(chan struct{}), open: make(map[*handle]struct{})}
	root, err := fusefs.NewLoopbackRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("hangfs: %s: %w", dir, err)
	}
	f.root = f.wrap(root)
	second := time.Second
	silent := log.New(io.Discard, "", 0)
	opts := &fusefs.Options{
		EntryTimeout: &second, AttrTimeout: &second, Logger: silent,
		// More in the background than a disk has in flight, so that what holds requests up is who
		// was told to. Splicing would leave pipes behind.
		MountOptions: fuse.MountOptions{MaxBackground: 1024, MaxWrite: conf.MaxWrite, DisableSplice: true, Logger: silent},
	}
	if conf.Writeback {
		opts.ExtraCapabilities = fuse.CAP_WRITEBACK_CACHE
	}
	// Not mounted by go-fuse, whose descriptor processes would inherit that are started meanwhile.
	fd, err := sys.MountFUSE(point, "hangfs", conf.MaxWrite)
	if err != nil {
		if slices.ContainsFunc([]error{fs.ErrNotExist, fs.ErrPermission, syscall.ENODEV}, func(e error) bool { return errors.Is(err, e) }) {
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return nil, fmt.Errorf("hangfs: %s: %w", point, err)
	}
	// The server takes the descriptor over, and closes it also where it fails.
	server, err := fuse.NewServer(fusefs.NewNodeFS(f.root, opts), fmt.Sprintf("/dev/fd/%d", fd.Int()), &opts.MountOptions)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("hangfs: %s: %w", point, err), sys.UnmountFUSE(point))
	}
	go func() {
		defer close(f.ended)
		server.Serve()
	}()
	return f, nil
}

// Close releases what is held and unmounts the file system. Where files of it are still open, what
// is in progress on them fails.
func (f *FS) Close() error {
	f.mu.Lock()
	f.closed = true
	for k := range f.held {
		f.releaseLocked(Kind(k))
	}
	f.mu.Unlock()
	if err := sys.UnmountFUSE(f.point); err != nil {
		return fmt.Errorf("hangfs: %s: %w", f.point, err)
	}
	<-f.ended
	// The kernel tells nothing of closes once it is unmounting.
	f.mu.Lock()
	open := slices.Collect(maps.Keys(f.open))
	f.mu.Unlock()
	for _, h := range open {
		h.close()
	}
	return nil
}

// Hold makes requests of these kinds wait that come from now on.
func (f *FS) Hold(ks ...Kind) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range ks {
		if f.held[k] == nil && !f.closed {
			f.held[k] = make(chan struct{})
		}
	}
}

// Release releases requests of these kinds: those that wait, and those to come.
func (f *FS) Release(ks ...Kind) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range ks {
		f.releaseLocked(k)
	}
}

// Fail makes requests of kind k fail that come from now on, instead of being carried out; 0 ends
// that.
func (f *FS) Fail(k Kind, errno syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails[k] = errno
}

func (f *FS) releaseLocked(k Kind) {
	if f.held[k] != nil {
		close(f.held[k])
		f.held[k] = nil
	}
}

// Drop makes the kernel forget what it has cached of the file of this name in the folder itself, so
// that reads come here again. It waits for reads of the file that are held. It does nothing where
// the file was never looked at.
func (f *FS) Drop(name string) error {
	n := f.root.EmbeddedInode().GetChild(name)
	if n == nil {
		return nil
	}
	if errno := n.NotifyContent(0, 0); errno != 0 && errno != syscall.ENOENT {
		return fmt.Errorf("hangfs: %s: dropping its pages: %w", name, errno)
	}
	return nil
}

// Waiting is the number of requests of kind k that are held just now.
func (f *FS) Waiting(k Kind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.waiting[k]
}

// Await returns when at least n requests of kind k are held, or with the context's error, which it
// wraps.
func (f *FS) Await(ctx context.Context, k Kind, n int) error {
	for {
		f.mu.Lock()
		have, changed := f.waiting[k], f.changed
		f.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("hangfs: %d requests of kind %s are held, not %d: %w", have, k, n, ctx.Err())
		}
	}
}

// Log gives the requests that have come, in that order.
func (f *FS) Log() []Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]Event, len(f.events))
	for i, e := range f.events {
		all[i] = *e
	}
	return all
}

// do carries a request out, when it may.
func (f *FS) do(ctx context.Context, e Event, carryOut func() syscall.Errno) syscall.Errno {
	e.Began = time.Now()
	f.mu.Lock()
	f.events = append(f.events, &e)
	gate, errno := f.held[e.Kind], f.fails[e.Kind]
	if gate != nil {
		e.Held = true
		f.countLocked(e.Kind, 1)
	}
	f.mu.Unlock()

	if gate != nil {
		var interrupted <-chan struct{}
		if f.conf.Interrupt {
			interrupted = ctx.Done()
		}
		select {
		case <-gate:
		case <-interrupted:
			errno = syscall.EINTR
		}
	}
	if errno == 0 {
		errno = carryOut()
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	if gate != nil {
		f.countLocked(e.Kind, -1)
	}
	e.Ended, e.Errno = time.Now(), errno
	return errno
}

func (f *FS) countLocked(k Kind, n int) {
	f.waiting[k] += n
	close(f.changed)
	f.changed = make(chan struct{})
}

// node is a file or a folder.
type node struct {
	*fusefs.LoopbackNode
	f *FS
}

func (f *FS) wrap(n fusefs.InodeEmbedder) fusefs.InodeEmbedder {
	return &node{LoopbackNode: n.(*fusefs.LoopbackNode), f: f}
}

func (n *node) path() string { return n.Path(n.Root()) }

// WrapChild implements NodeWrapChilder.
func (n *node) WrapChild(_ context.Context, child fusefs.InodeEmbedder) fusefs.InodeEmbedder {
	return n.f.wrap(child)
}

// Lookup implements NodeLookuper.
func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (child *fusefs.Inode, errno syscall.Errno) {
	errno = n.f.do(ctx, Event{Kind: Look, Path: filepath.Join(n.path(), name)}, func() (errno syscall.Errno) {
		child, errno = n.LoopbackNode.Lookup(ctx, name, out)
		return errno
	})
	return child, errno
}

// Getattr implements NodeGetattrer.
func (n *node) Getattr(ctx context.Context, h fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	return n.f.do(ctx, Event{Kind: Look, Path: n.path()}, func() syscall.Errno {
		return n.LoopbackNode.Getattr(ctx, h, out)
	})
}

// Open implements NodeOpener.
func (n *node) Open(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	flags &^= syscall.O_DIRECT // is between the kernel and its user
	if n.f.conf.Writeback && flags&syscall.O_ACCMODE == syscall.O_WRONLY {
		// the page cache reads what it has of a page to write
		flags ^= syscall.O_WRONLY | syscall.O_RDWR
	}
	h := &handle{f: n.f, path: n.path()}
	errno := n.f.do(ctx, Event{Kind: Open, Path: h.path}, func() syscall.Errno {
		below, _, errno := n.LoopbackNode.Open(ctx, flags)
		if errno == 0 {
			h.below = below.(file)
		}
		return errno
	})
	if errno != 0 {
		return nil, 0, errno
	}
	n.f.mu.Lock()
	n.f.open[h] = struct{}{}
	n.f.mu.Unlock()
	if n.f.conf.Direct {
		return h, fuse.FOPEN_DIRECT_IO, 0
	}
	return h, fuse.FOPEN_KEEP_CACHE, 0
}

// file is what LoopbackNode opens.
type file interface {
	fusefs.FileReader
	fusefs.FileWriter
	fusefs.FileFsyncer
	fusefs.FileAllocater
	fusefs.FileLseeker
	fusefs.FileGetattrer
	fusefs.FileSetattrer
	fusefs.FileReleaser
}

// handle is an open file. It does not show all of what it stands on, which offers the kernel to go
// past the server.
type handle struct {
	f     *FS
	path  string
	below file
}

// Read implements FileReader.
func (h *handle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	var data []byte
	e := Event{Kind: Read, Path: h.path, Off: off, Len: int64(len(dest))}
	errno := h.f.do(ctx, e, func() syscall.Errno {
		res, errno := h.below.Read(ctx, dest, off)
		if errno != 0 {
			return errno
		}
		var status fuse.Status
		data, status = res.Bytes(dest)
		return syscall.Errno(status)
	})
	if errno != 0 {
		return nil, errno
	}
	return fuse.ReadResultData(data), 0
}

// Write implements FileWriter.
func (h *handle) Write(ctx context.Context, data []byte, off int64) (n uint32, errno syscall.Errno) {
	e := Event{Kind: Write, Path: h.path, Off: off, Len: int64(len(data))}
	errno = h.f.do(ctx, e, func() (errno syscall.Errno) {
		n, errno = h.below.Write(ctx, data, off)
		return errno
	})
	return n, errno
}

// Fsync implements FileFsyncer.
func (h *handle) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	return h.f.do(ctx, Event{Kind: Fsync, Path: h.path}, func() syscall.Errno { return h.below.Fsync(ctx, flags) })
}

// Flush implements FileFlusher.
func (h *handle) Flush(ctx context.Context) syscall.Errno {
	return h.f.do(ctx, Event{Kind: Flush, Path: h.path}, func() syscall.Errno { return 0 })
}

// Allocate implements FileAllocater.
func (h *handle) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	if h.f.conf.Rigid {
		return syscall.ENOSYS
	}
	e := Event{Kind: Fallocate, Path: h.path, Off: int64(off), Len: int64(size)}
	return h.f.do(ctx, e, func() syscall.Errno { return h.below.Allocate(ctx, off, size, mode) })
}

// Lseek implements FileLseeker.
func (h *handle) Lseek(ctx context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	return h.below.Lseek(ctx, off, whence)
}

// Getattr implements FileGetattrer.
func (h *handle) Getattr(ctx context.Context, out *fuse.AttrOut) syscall.Errno {
	return h.below.Getattr(ctx, out)
}

// Setattr implements FileSetattrer.
func (h *handle) Setattr(ctx context.Context, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return h.below.Setattr(ctx, in, out)
}

// Release implements FileReleaser.
func (h *handle) Release(context.Context) syscall.Errno {
	h.close()
	return 0
}

// close closes the file, once.
func (h *handle) close() {
	h.f.mu.Lock()
	_, open := h.f.open[h]
	delete(h.f.open, h)
	h.f.mu.Unlock()
	if open {
		h.below.Release(context.Background())
	}
}
