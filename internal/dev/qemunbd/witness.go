package qemunbd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"vdev/internal/child"
	"vdev/internal/sys"
)

// witnessName is what a witness is called by (its argument 0).
const witnessName = "vdev-qemu-nbd-witness"

// Witness is the whole of a process that a Server has started to look after a qemu-nbd: it does not
// return then. In all others it does nothing. A program that sets Config.Records calls it first of
// all: the witness is the same program.
func Witness() {
	if len(os.Args) > 1 && os.Args[0] == witnessName {
		os.Exit(witness(os.Args[1:]))
	}
}

// The files of a witness, after the standard ones.
const (
	witnessSocket = 3 // what qemu-nbd listens on
	witnessRecord = 4
)

// What stands in the record of a Server: begun since its qemu-nbd has served the image, and
// endedWell when that has ended in order. They are of one length, so that the end needs no room.
const (
	begun     = "begun\n"
	endedWell = "ended\n"
)

// witness runs a program, and returns its exit status. It hands SIGTERM on. When it is killed, so
// is the program: then nobody could say how that has ended.
func witness(args []string) int {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	// Who reads what the program says may have gone. The program is not to inherit this.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	record := os.NewFile(witnessRecord, "record")
	sys.CloseOnExec(witnessRecord)

	var said said
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = heard{&said}
	// As long as the program is there, whoever waits for this process waits for the end of its
	// standard error.
	cmd.ExtraFiles = []*os.File{os.NewFile(witnessSocket, "socket"), os.Stderr}
	started, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		for sig := range told {
			_ = cmd.Process.Signal(sig) // unless it has ended
		}
	}()
	err = started.Err()
	if err == nil && !said.hasLost() {
		if _, err := record.WriteAt([]byte(endedWell), 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 0
	}
	if cmd.ProcessState.String() == "signal: killed" {
		sys.KillSelf() // as it would be seen without a witness
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code
	}
	fmt.Fprintln(os.Stderr, cmd.ProcessState)
	return 1
}

// heard hands on what a program says, to whoever is still there.
type heard struct{ said *said }

func (h heard) Write(p []byte) (int, error) {
	_, _ = h.said.Write(p)
	_, _ = os.Stderr.Write(p)
	return len(p), nil
}

const (
	recordPrefix = "qemu-nbd-"
	// maxRecords bounds the records of Servers that have gone: each vdev that is killed leaves one
	// for each image. But one that is younger than recordLife stays: a guest that comes back may
	// need it.
	maxRecords = 64
	recordLife = time.Hour
	// verdictWait is how long the end of another Server's witness is waited for, once its qemu-nbd
	// has let go of the image.
	verdictWait  = 2 * time.Second
	verdictPause = 5 * time.Millisecond
)

func recordFile(dir string, holder uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s%016x", recordPrefix, holder))
}

// newRecord opens the record of a Server, which it makes if need be, and locks it: the lock goes
// with the witness. What it says stays until the next program serves, since that may fail to begin.
func newRecord(dir string, holder uint64) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	sweep(dir)
	f, err := os.OpenFile(recordFile(dir, holder), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// A program that is just being started may still have the last one's descriptor.
	if err := lockRecord(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// beginRecord notes that a program serves the image.
func beginRecord(f *os.File) error {
	_, err := f.WriteAt([]byte(begun), 0)
	if err != nil {
		err = errors.Join(err, f.Truncate(0)) // it must not say any more what it said
	}
	return err
}

// openRecord opens a record that is there. NFS locks only a file that is open for writing so that
// nobody else has it (flock(2), "NFS details").
func openRecord(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR, 0)
}

// lockRecord locks a record, for which it waits a while.
func lockRecord(f *os.File) error {
	for begun := time.Now(); ; time.Sleep(verdictPause) {
		err := sys.TryFlock(int(f.Fd()))
		if err == nil || time.Since(begun) >= verdictWait {
			return err
		}
	}
}

// readRecord tells how the qemu-nbd of a Server has ended: in order, or not. known is false where
// there is no record.
func readRecord(dir string, holder uint64) (ended, known bool) {
	f, err := openRecord(recordFile(dir, holder))
	if err != nil {
		return false, !errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	if err := lockRecord(f); err != nil {
		return false, true
	}
	text, err := io.ReadAll(io.LimitReader(f, int64(len(endedWell))+1))
	return err == nil && string(text) == endedWell, true
}

// sweep removes the oldest records of Servers that have gone, where there are many.
func sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	type record struct {
		path string
		time time.Time
	}
	var all []record
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasPrefix(e.Name(), recordPrefix) {
			all = append(all, record{filepath.Join(dir, e.Name()), info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b record) int { return a.time.Compare(b.time) })
	for _, r := range all[:max(len(all)-maxRecords, 0)] {
		if time.Since(r.time) < recordLife {
			break // and so are the others
		}
		f, err := openRecord(r.path)
		if err != nil {
			continue
		}
		if sys.TryFlock(int(f.Fd())) == nil {
			_ = os.Remove(r.path)
		}
		f.Close()
	}
}

// Ended tells of the qemu-nbd of a Server, of any process, whether it has ended in order: then all
// that it had answered is in the image. known is false where there is no record of it: there was
// none, or not here, or it has gone with the host. It is asked when this Server has the image,
// which the other one's qemu-nbd has let go of then. It waits for its witness, but not for long.
func (s *Server) Ended(holder uint64) (ended, known bool) {
	if s.conf.Records == "" {
		return false, false
	}
	return readRecord(s.conf.Records, holder)
}
