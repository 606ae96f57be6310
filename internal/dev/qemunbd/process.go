package qemunbd

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"vdev/internal/child"
	"vdev/internal/sys"
)

// process is a qemu-nbd that was started.
type process struct {
	s     *Server
	cmd   *exec.Cmd
	line  net.Conn      // a client of its own
	up    chan struct{} // closed when it serves
	ended chan struct{} // closed when it has ended, and was waited for

	said said

	// Under Server.mu:
	told   bool     // to end
	status error    // of its end
	record *os.File // until the program serves, or has ended; nil for none
}

// run is what starts qemu-nbd: a shell, which alone can tell the program its own process number, as
// LISTEN_PID wants it.
const run = `LISTEN_PID=$$ exec "$0" "$@"`

// launch starts qemu-nbd. s.mu is held. It does not wait for it to serve.
func (s *Server) launch(args []string) (*process, error) {
	listener, err := s.listen()
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	p := &process{s: s, up: make(chan struct{}), ended: make(chan struct{})}
	p.cmd = exec.Command("/bin/sh", append([]string{"-c", run, s.program}, args...)...)
	p.cmd.Env = append(os.Environ(), "LISTEN_FDS=1")
	p.cmd.ExtraFiles = []*os.File{listener}
	s.ordered = false
	if record := s.record(); record != nil {
		p.record = record
		p.cmd.Path, p.cmd.Args = "/proc/self/exe", append([]string{witnessName}, p.cmd.Args...)
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, record)
	}
	if s.overlay != nil {
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, s.overlay)
	}
	p.cmd.Stderr = &p.said
	started, err := child.Start(p.cmd, syscall.SIGTERM)
	if err != nil {
		p.closeRecord()
		return nil, err
	}
	go p.attend(started)
	// The queue of the listening socket is there already: this waits for nothing.
	if p.line, err = net.Dial("unix", s.path()); err != nil {
		p.endLocked(syscall.SIGKILL)
		return nil, err
	}
	go p.greet()
	return p, nil
}

// record makes a new record for a witness, where there is to be one. s.mu is held. There is none
// once a program has ended badly: what the last record does not say stays unsaid, or a later
// program's end in order would hide that something was lost before.
func (s *Server) record() *os.File {
	if s.conf.Records == "" || !s.keeps() || s.generation != 0 {
		return nil
	}
	f, err := newRecord(s.conf.Records, s.holder)
	if err != nil {
		s.tellNoRecord(err)
		return nil
	}
	return f
}

func (s *Server) tellNoRecord(err error) {
	s.conf.Log(fmt.Sprintf("how qemu-nbd of %s ends cannot be recorded: when this vdev is killed, writes that were not flushed "+
		"will be taken for lost (--state-dir): %v", s.conf.File, err))
}

// closeRecord leaves the record to the witness. s.mu is held.
func (p *process) closeRecord() {
	if p.record != nil {
		p.record.Close()
		p.record = nil
	}
}

// listen makes the socket for a program, and has s.socket stand for it.
func (s *Server) listen() (*os.File, error) {
	dir, err := os.MkdirTemp("", "vdev-nbd-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	at, err := sys.OpenPath(dir)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	// However long the folder's path is: a socket's must not be.
	name := filepath.Join("/proc/self/fd", strconv.Itoa(at.Int()), "socket")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer listener.Close() // which removes its name
	socket, err := sys.OpenPath(name)
	if err != nil {
		return nil, err
	}
	if err := s.socket.Become(socket); err != nil {
		socket.Close()
		return nil, err
	}
	return listener.File()
}

// attend waits for the program's end.
func (p *process) attend(started *child.Process) {
	err := started.Err()

	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	p.status = err
	p.closeRecord()
	s.ordered = err == nil && !p.said.hasLost()
	if p.line != nil {
		p.line.Close()
	}
	if p.isUp() && !s.standIn && (err != nil || p.said.hasLost()) {
		if s.overlay != nil || s.keeps() {
			s.generation++
		}
		s.conf.Log(fmt.Sprintf("qemu-nbd of %s has ended: %s", s.conf.File, p.why()))
	}
	close(p.ended)
}

const (
	fixedNewstyle = 1 << 0 // NBD_FLAG_C_FIXED_NEWSTYLE
	noZeroes      = 1 << 1 // NBD_FLAG_C_NO_ZEROES
	optExportName = 1      // NBD_OPT_EXPORT_NAME
	haveOpt       = "IHAVEOPT"
)

// greet goes through the handshake (NBD's doc/proto.md, "Fixed newstyle negotiation"), after which
// the image is served, and leaves the connection alone then. A client that does not end its
// handshake is hung up on.
func (p *process) greet() {
	var greeting [18]byte // NBDMAGIC, IHAVEOPT, 16 bits of flags
	if _, err := io.ReadFull(p.line, greeting[:]); err != nil {
		return // it ends, and says why
	}
	answer := binary.BigEndian.AppendUint32(nil, fixedNewstyle|noZeroes)
	answer = binary.BigEndian.AppendUint32(append(answer, haveOpt...), optExportName)
	answer = binary.BigEndian.AppendUint32(answer, 0) // length of the name
	var export [10]byte                               // 64 bits of size, 16 bits of flags
	if _, err := p.line.Write(answer); err != nil {
		return
	}
	if _, err := io.ReadFull(p.line, export[:]); err != nil {
		return
	}
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served = s.served || !s.standIn
	if p.record != nil && !s.standIn {
		// Before anything is written to the image.
		if err := beginRecord(p.record); err != nil {
			s.tellNoRecord(err)
		}
	}
	p.closeRecord()
	p.said.follow(s.conf.Log)
	close(p.up)
}

// endLocked tells the program to end.
func (p *process) endLocked(sig syscall.Signal) {
	p.told = true
	if p.line != nil {
		p.line.Close()
	}
	_ = p.cmd.Process.Signal(sig) // unless it has ended
}

func (p *process) isUp() bool     { return isClosed(p.up) }
func (p *process) hasEnded() bool { return isClosed(p.ended) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// awaitEnd waits for the program's end, and tells whether it came.
func (p *process) awaitEnd(patience time.Duration) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.ended:
		return true
	case <-timer.C:
		return false
	}
}

// why gives the reason of the program's end: what it has said, or its status. s.mu is held.
func (p *process) why() string {
	status := "exit status 0"
	if p.status != nil {
		status = p.status.Error()
	}
	return cmp.Or(p.said.words(), "qemu-nbd: "+status)
}

// locked tells whether the image was in use (file-posix.c, raw_check_lock_bytes and
// raw_apply_lock_bytes).
func (p *process) locked() bool {
	words := p.said.words()
	return strings.Contains(words, "Failed to get") && strings.Contains(words, "lock")
}

// maxWords is how much of what a program says is kept, in bytes.
const maxWords = 4096

// said takes what a program says on its standard error.
type said struct {
	mu   sync.Mutex
	line []byte   // the last one, unfinished
	all  []string // at most maxWords of it
	size int
	lost bool              // of it all: caches that could not be written
	log  func(text string) // where it goes, once the program serves
}

// Write implements io.Writer.
func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.line = append(s.line, b...)
	for {
		end := bytes.IndexByte(s.line, '\n')
		if end < 0 && len(s.line) < maxWords {
			return len(b), nil
		}
		if end < 0 {
			end = len(s.line) - 1
		}
		text := strings.TrimSpace(string(s.line[:end+1]))
		s.line = append(s.line[:0], s.line[end+1:]...)
		// qcow2.c, qcow2_inactivate: the only way to hear of it.
		s.lost = s.lost || strings.Contains(text, "Failed to flush")
		if s.log != nil {
			s.log(text)
			continue
		}
		if s.size += len(text); s.size <= maxWords {
			s.all = append(s.all, text)
		}
	}
}

// follow has all that was said, and will be, go to log. What is said from now on is not kept.
func (s *said) follow(log func(text string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range s.all {
		log(text)
	}
	s.all, s.log = nil, log
}

// words are what was kept, in one line.
func (s *said) words() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.all, "; ")
}

func (s *said) hasLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}
