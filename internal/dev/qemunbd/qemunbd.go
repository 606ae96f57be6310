package qemunbd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
)

const (
	// lockPause is how often an image that is in use is tried again, and lockWait for how long:
	// whoever has it may have been told to end a moment ago, as by the death of the last vdev. It
	// is less than the start of vdev waits for a disk: the other disks are not to wait that long
	// for an image in use, which would be taken for storage that does not answer.
	lockPause = 50 * time.Millisecond
	lockWait  = 4 * time.Second
	// endPatience is how long Close waits for a program that is to end in order, and killPatience
	// how long for the death of one that was killed and that storage keeps.
	endPatience = 2 * time.Second
	// tellAfter is how long a start waits before it says for what.
	tellAfter    = 3 * time.Second
	killPatience = time.Second
)

// Config says which image is served, and how.
type Config struct {
	File     string
	Format   string // by QEMU's name: "qcow2", "vmdk", "raw", ...
	Program  string // qemu-nbd; empty: the one in PATH
	ReadOnly bool
	Direct   bool // bypass the host's page cache (O_DIRECT), with Linux's AIO
	Discard  bool // discard what the guest no longer uses

	// DetectZeroes says what becomes of writes of zeroes: "off" (or empty) writes them, "on" has
	// them take no space where the format can do that, "unmap" discards as well.
	DetectZeroes string

	// Snapshot leaves the image as it is: what is written is forgotten at Close.
	Snapshot bool

	// Chain says what other files the image may lead to; empty: ChainFolder.
	Chain Chain

	// InUse, where it is not nil, is told when the image is in use at the first Start. The disk is
	// then served as it will be, but without its content, until Stop: enough for its size to be
	// known, while the guest is where it comes from.
	InUse func(error)

	// Records is the folder where those that serve the image after this process find out how its
	// qemu-nbd has ended; it is made when there is something to record. The program must call
	// Witness. Empty: nobody finds out, and takes for lost what was not flushed.
	Records string

	// Log is told, where it is not nil, what qemu-nbd says, when it dies, and when it is waited
	// for. Note is told which files the image leads to. They must not block.
	Log, Note func(text string)
}

// Server is an image, with the program that serves it at times. Start, Stop and Kill are for
// nbd.Config.Server.
//
// Start may be called by several goroutines at once, Kill at any time, Stop while no Start runs,
// Close when nothing else is called any more.
type Server struct {
	conf    Config
	image   string  // absolute
	program string  // qemu-nbd
	socket  *sys.FD // what the program listens on (O_PATH)
	holder  uint64  // see Holding
	overlay *os.File
	base    os.FileInfo // the image, when the overlay was made

	mu         sync.Mutex
	p          *process // the last one, until Stop has seen its end; or nil
	generation uint64
	chain      string // the files that the image leads to, as they were told last
	served     bool   // the image has been
	standIn    bool   // only the size is served: see Config.InUse
	ordered    bool   // the last program has ended in order
	ending     bool   // see End
	closed     bool
}

// New prepares to serve an image. Nothing is started, but for a snapshot's overlay being made.
// Errors wrap EINVAL for a bad Config.
func New(conf Config) (*Server, error) {
	if conf.Log == nil {
		conf.Log = func(string) {}
	}
	if conf.Note == nil {
		conf.Note = func(string) {}
	}
	conf.Chain = cmp.Or(conf.Chain, ChainFolder)
	switch {
	case conf.File == "":
		return nil, fmt.Errorf("a file is missing: %w", devsw.EINVAL)
	case conf.Format == "":
		return nil, fmt.Errorf("the format is missing: %w", devsw.EINVAL)
	case !slices.Contains([]string{"", "off", "on", "unmap"}, conf.DetectZeroes):
		return nil, fmt.Errorf("detect zeroes %q: must be off, on or unmap: %w", conf.DetectZeroes, devsw.EINVAL)
	case conf.DetectZeroes == "unmap" && !conf.Discard:
		return nil, fmt.Errorf("detect zeroes unmap: needs discard: %w", devsw.EINVAL)
	case !slices.Contains(Chains, string(conf.Chain)):
		return nil, fmt.Errorf("backing chain %q: must be folder, files or any: %w", conf.Chain, devsw.EINVAL)
	case conf.Snapshot && conf.InUse != nil:
		return nil, fmt.Errorf("a snapshot of an image that is in use: %w", devsw.EINVAL)
	}
	s := &Server{conf: conf, holder: devsw.NewHolder()}
	var err error
	if s.image, err = filepath.Abs(conf.File); err != nil {
		return nil, err
	}
	if s.base, err = os.Stat(s.image); err != nil {
		return nil, err
	}
	if err := s.look(); err != nil {
		return nil, err
	}
	if s.program, err = find(cmp.Or(conf.Program, "qemu-nbd"), ""); err != nil {
		return nil, err
	}
	// The number stays when another socket takes its place.
	if s.socket, err = sys.OpenPath("/"); err != nil {
		return nil, err
	}
	if conf.Snapshot {
		if err := s.makeOverlay(); err != nil {
			s.socket.Close()
			return nil, fmt.Errorf("snapshot of %s: %w", conf.File, err)
		}
	}
	return s, nil
}

// find gives the path of one of QEMU's programs: the one beside another, or in PATH.
func find(name, beside string) (string, error) {
	if beside != "" {
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(beside), name)); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%s, which serves such images, is not installed (Debian's package qemu-utils has it)", name)
	}
	return path, err
}

// URI is where the image is served after Start. It stays the same, and means something in this
// process only.
func (s *Server) URI() string {
	return "nbd+unix:///?socket=" + s.path()
}

func (s *Server) path() string { return "/proc/self/fd/" + strconv.Itoa(s.socket.Int()) }

// Start sees to it that the image is served, and returns when it is. While the image is in use by
// another process it tries again for a few seconds. Errors: ctx's when that is done; a *StartError.
// generation changes when a program has ended badly, with which what it had answered, and not been
// asked to flush, may be gone.
func (s *Server) Start(ctx context.Context) (generation uint64, err error) {
	for begun := time.Now(); ; {
		if !s.runs() {
			if err := s.look(); err != nil {
				return 0, err
			}
		}
		p, generation, err := s.current()
		if err != nil {
			return 0, err
		}
		patience := time.AfterFunc(tellAfter, func() { s.tellWait(p) })
		select {
		case <-p.up:
			patience.Stop()
			return generation, nil
		case <-p.ended:
			err = s.whyNot(p)
		case <-ctx.Done():
			err = ctx.Err()
		}
		patience.Stop()
		if ctx.Err() != nil && err == ctx.Err() {
			return 0, err
		}
		if err == nil {
			return generation, nil
		}
		if !errors.Is(err, ErrInUse) {
			return 0, err
		}
		if s.makeDo(err) {
			continue
		}
		if time.Since(begun) >= lockWait {
			return 0, err
		}
		pause := time.NewTimer(lockPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return 0, ctx.Err()
		}
	}
}

// look looks at where the image leads to, and tells it where that is news.
func (s *Server) look() error {
	chain, err := follow(s.image, s.conf.Format, s.conf.Chain)
	if err != nil {
		return err
	}
	var files []string
	for _, l := range chain[1:] {
		files = append(files, fmt.Sprintf("%s %s (%s)", l.kind, l.file, cmp.Or(l.format, "unknown")))
	}
	told := strings.Join(files, ", ")
	s.mu.Lock()
	news := told != s.chain
	s.chain = told
	s.mu.Unlock()
	if news && told != "" {
		s.conf.Note(fmt.Sprintf("%s leads to other files: %s", s.conf.File, told))
	}
	return nil
}

// runs tells whether there is a program.
func (s *Server) runs() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.p != nil && !s.p.hasEnded()
}

// tellWait tells what a start waits for.
func (s *Server) tellWait(p *process) {
	s.mu.Lock()
	chain, over := s.chain, p.isUp() || p.hasEnded()
	s.mu.Unlock()
	if over {
		return
	}
	text := "waits for qemu-nbd to open " + s.conf.File
	if chain != "" {
		text += ", which leads to " + chain
	}
	s.conf.Log(text)
}

// current gives the program that runs, if need be a new one.
func (s *Server) current() (*process, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, 0, &StartError{File: s.conf.File, Why: "is not served any more", final: true}
	}
	if s.p == nil || s.p.hasEnded() {
		if err := s.unchanged(); err != nil {
			return nil, 0, err
		}
		args, err := s.args()
		if err != nil {
			return nil, 0, err
		}
		if s.p, err = s.launch(args); err != nil {
			return nil, 0, &StartError{File: s.conf.File, Why: err.Error(), final: !s.served}
		}
	}
	return s.p, s.generation, nil
}

// unchanged tells whether an overlay still stands on the image it was made for.
func (s *Server) unchanged() error {
	if s.overlay == nil {
		return nil
	}
	now, err := os.Stat(s.image)
	if err != nil {
		return &StartError{File: s.conf.File, Why: err.Error()}
	}
	if !os.SameFile(now, s.base) || now.Size() != s.base.Size() || !now.ModTime().Equal(s.base.ModTime()) {
		return &StartError{File: s.conf.File, Why: "was changed, and the snapshot that stands on it is of no use any more", final: true}
	}
	return nil
}

// args are qemu-nbd's. The overlay is the file after the listening socket.
func (s *Server) args() ([]string, error) {
	c := &s.conf
	args := []string{"--shared=0"}
	if c.ReadOnly {
		args = append(args, "--read-only")
	}
	if s.standIn {
		size, err := s.size()
		if err != nil {
			return nil, &StartError{File: c.File, Why: err.Error()}
		}
		return append(args, "--image-opts", fmt.Sprintf("driver=null-co,size=%d", size)), nil
	}
	cache, discard := "writeback", "ignore"
	if c.Direct {
		cache = "none"
		args = append(args, "--aio=native")
	}
	if c.Discard {
		discard = "unmap"
	}
	args = append(args, "--cache="+cache, "--discard="+discard, "--detect-zeroes="+cmp.Or(c.DetectZeroes, "off"))
	if s.overlay != nil {
		return append(args, "--format=qcow2", overlayPath), nil
	}
	return append(args, "--format="+c.Format, s.image), nil
}

// makeDo has the first Start serve a disk of the same size in place of an image that is in use,
// where that is enough.
func (s *Server) makeDo(inUse error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conf.InUse == nil || s.served || s.standIn {
		return false
	}
	s.standIn = true
	s.conf.InUse(inUse)
	return true
}

// whyNot makes an error of the end of a program that never served the image; nil for one that did.
func (s *Server) whyNot(p *process) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.isUp() {
		return nil
	}
	// Once the image has been served it will be again, when whatever is in the way has gone.
	return &StartError{File: s.conf.File, Why: p.why(), inUse: p.locked(), final: !s.served && !p.told}
}

// Stop ends the program in order, and returns when it is gone and the image is not locked any more.
func (s *Server) Stop() { s.end(syscall.SIGTERM) }

// Kill ends the program at once, and returns when it is gone. After End it may be no more than
// Stop.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

// End says that Close will follow. From here on a program is not killed any more that may keep what
// it has answered: the guest may go on with another vdev, which knows nothing of a loss.
func (s *Server) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
}

// Holding implements nbd.Holder. An overlay goes with the Server. Other programs have what they
// have answered in the image when they have ended in order.
func (s *Server) Holding() (devsw.Holding, uint64) {
	switch {
	case s.overlay != nil:
		return devsw.HoldsAlways, s.holder
	case s.keeps():
		return devsw.HoldsToClose, s.holder
	}
	return devsw.HoldsNothing, 0
}

// keeps tells whether the program may have answered what a kill would lose.
func (s *Server) keeps() bool {
	return s.overlay == nil && s.conf.Format != Raw && !s.conf.ReadOnly
}

func (s *Server) end(sig syscall.Signal) {
	s.mu.Lock()
	if s.ending && s.keeps() {
		sig = syscall.SIGTERM
	}
	p := s.p
	if p != nil {
		p.endLocked(sig)
	}
	s.mu.Unlock()
	if p == nil {
		return
	}
	<-p.ended
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.p == p {
		s.p, s.standIn = nil, false
		s.conf.InUse = nil
	}
}

// Close ends the program and forgets the overlay. It does not wait for ever: a program that does
// not end is killed where it keeps nothing; else the error says that it was left to itself, and it
// ends when it has written what it keeps.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	p, keeps := s.p, s.keeps()
	if p != nil {
		p.endLocked(syscall.SIGTERM)
	}
	s.mu.Unlock()
	var errs []error
	switch {
	case p == nil || p.awaitEnd(endPatience):
	case keeps:
		errs = append(errs, fmt.Errorf("%s: qemu-nbd (process %d) still writes what it has answered, and will end then", s.conf.File, p.cmd.Process.Pid))
	default:
		s.mu.Lock()
		p.endLocked(syscall.SIGKILL)
		s.mu.Unlock()
		if !p.awaitEnd(killPatience) {
			errs = append(errs, fmt.Errorf("%s: qemu-nbd (process %d) was killed and has not ended: its storage does not answer", s.conf.File, p.cmd.Process.Pid))
		}
	}
	if s.overlay != nil {
		errs = append(errs, s.overlay.Close())
	}
	s.mu.Lock()
	if s.ordered && s.conf.Records != "" {
		// A disk that was closed in order, and of whose program there is no record, has lost
		// nothing.
		_ = os.Remove(recordFile(s.conf.Records, s.holder))
	}
	s.mu.Unlock()
	return errors.Join(append(errs, s.socket.Close())...)
}

// overlayPath is the overlay as a program sees it that has inherited it after one other file.
const overlayPath = "/proc/self/fd/4"

// makeOverlay makes an empty image that stands on the other one, without a name. Memory is no place
// for it, as it is for much of what is in /tmp.
func (s *Server) makeOverlay() (err error) {
	s.overlay, err = os.CreateTemp(cmp.Or(os.Getenv("TMPDIR"), "/var/tmp"), "vdev-snapshot-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.overlay.Close()
		}
	}()
	if err := os.Remove(s.overlay.Name()); err != nil {
		return err
	}
	socket, err := os.Open(os.DevNull) // in the place of what qemu-nbd inherits
	if err != nil {
		return err
	}
	defer socket.Close()
	_, err = s.qemuIMG([]*os.File{socket, s.overlay}, "create", "-q", "-f", "qcow2", "-b", s.image, "-F", s.conf.Format, overlayPath)
	return err
}

// size asks for the size in bytes of the disk in the image, which may be in use.
func (s *Server) size() (int64, error) {
	out, err := s.qemuIMG(nil, "info", "-U", "-f", s.conf.Format, "--output=json", s.image)
	if err != nil {
		return 0, err
	}
	return virtualSize(out)
}

// Size gives the size in bytes of the disk in the image, as it is now: it may have been resized
// since it was served. It waits as long as storage does. ok is false where it is none of its own,
// as with a snapshot.
func (s *Server) Size() (size int64, ok bool, err error) {
	if s.overlay != nil || s.conf.Format == "" {
		return 0, false, nil
	}
	if s.conf.Format == "qcow2" {
		h, err := link{s.image, "qcow2", "image"}.read()
		return h.size, err == nil && h.size > 0, err
	}
	if size, err = s.size(); err != nil {
		return 0, false, fmt.Errorf("%s: %w", s.conf.File, err)
	}
	return size, true, nil
}

// virtualSize reads it off what qemu-img info has said.
func virtualSize(out []byte) (int64, error) {
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return 0, fmt.Errorf("qemu-img info: %w", err)
	}
	return info.Size, nil
}

// qemuIMG runs qemu-img.
func (s *Server) qemuIMG(inherited []*os.File, args ...string) ([]byte, error) {
	program, err := find("qemu-img", s.program)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.ExtraFiles = inherited
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.New(cmp.Or(oneLine(said.String()), err.Error()))
	}
	return out, nil
}

// oneLine puts what a program has said into one line.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
