package vnd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/imagefile"
	"vdev/internal/sys"
)

// Failures knows of which images a flush has failed: what had been written there is lost, and the
// host tells it once. So it is to be remembered for as long as the image is the same, whoever has
// it open, over the end of the process too. It belongs into a folder that goes when the host is
// started anew, as the host's page cache does: nobody counts on what was only there then.
//
// Images go by their Identity. There is at most one file for each. Its methods may be called on any
// goroutine.
type Failures struct {
	dir string      // may not exist yet; empty: nothing outlives the process
	log func(error) // told what could not be recorded

	mu    sync.Mutex
	known map[string]devsw.Errno
}

// failure is the content of a file.
type failure struct {
	Errno int       `json:"errno"`
	Error string    `json:"error"`
	Image string    `json:"image"` // its path then
	Time  time.Time `json:"time"`
	PID   int       `json:"pid"`
}

const (
	// recordWait is how long a flush that has failed waits for its record, before its caller is
	// told.
	recordWait = time.Second
	// maxRecord is more than a record has, in bytes.
	maxRecord = 64 << 10
	prefix    = "failed-flush-"
)

// NewFailures makes a Failures that keeps its files in the folder dir, which it makes when there is
// something to keep. Without a name it keeps none. log, which may be nil, is told why a failure
// could not be recorded for a successor. Any goroutine.
func NewFailures(dir string, log func(error)) *Failures {
	if log == nil {
		log = func(error) {}
	}
	return &Failures{dir: dir, log: log, known: make(map[string]devsw.Errno)}
}

// Check looks whether a failure could be recorded for a successor, as far as rights go, and says
// why not. It makes nothing, and waits for the file system.
func (f *Failures) Check() error {
	if f.dir == "" {
		return nil
	}
	for dir := f.dir; ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		switch {
		case err == nil && !st.IsDir():
			return imagefile.PathError(dir, syscall.ENOTDIR)
		case err == nil:
			return imagefile.PathError(dir, sys.MayMakeIn(dir))
		case !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir):
			return err
		}
	}
}

// Dir is the folder of what is to outlive the process; empty where there is none.
func (f *Failures) Dir() string { return f.dir }

func (f *Failures) file(identity string) string { return filepath.Join(f.dir, prefix+identity) }

// Known returns with what a flush of the image has failed, as far as this process knows: 0 for
// nothing. It looks at no file.
func (f *Failures) Known(identity string) devsw.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known[identity]
}

// Look is Known, with what a process before this one has left. A record that cannot be read counts
// as one of EIO.
func (f *Failures) Look(identity string) devsw.Errno {
	if e := f.Known(identity); e != 0 || f.dir == "" {
		return e
	}
	file, err := os.Open(f.file(identity))
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	if err != nil {
		// There may be none, although it cannot be opened: for want of descriptors, for one.
		_, statErr := os.Lstat(f.file(identity))
		if errors.Is(statErr, fs.ErrNotExist) {
			return 0
		}
		if statErr != nil {
			f.log(fmt.Errorf("whether there is a record is not known: %w", statErr))
			return 0
		}
	}
	e := devsw.EIO
	if err == nil {
		defer file.Close()
		if text, err := io.ReadAll(io.LimitReader(file, maxRecord)); err == nil {
			e = parseFailure(text)
		}
	}
	f.note(identity, e)
	return e
}

// parseFailure reads a file. What is none of ours is EIO: that it is there says that a flush has
// failed.
func parseFailure(text []byte) devsw.Errno {
	var r failure
	if err := json.Unmarshal(text, &r); err != nil || r.Errno <= 0 || r.Errno >= 4096 {
		return devsw.EIO
	}
	return devsw.Errno(r.Errno)
}

// text is the content of a file.
func (r failure) text() ([]byte, error) {
	text, err := json.Marshal(r)
	return append(text, '\n'), err
}

func (f *Failures) note(identity string, e devsw.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known[identity] = e
}

// Record remembers that a flush of the image at path has failed with e. When it returns a successor
// knows, unless the log was told why not; this process does in any case. It waits for the file
// system, but not for long.
func (f *Failures) Record(identity, path string, e devsw.Errno) {
	f.note(identity, e)
	if f.dir == "" {
		return
	}
	done := make(chan error, 1)
	go func() {
		done <- f.write(identity, failure{Errno: int(e), Error: e.Error(), Image: path, Time: time.Now(), PID: os.Getpid()})
	}()
	timeout := time.NewTimer(recordWait)
	defer timeout.Stop()
	select {
	case err := <-done:
		if err != nil {
			f.log(err)
		}
	case <-timeout.C:
		f.log(fmt.Errorf("%s: not written within %v", f.file(identity), recordWait))
	}
}

// write makes the file, as a whole or not at all.
func (f *Failures) write(identity string, r failure) error {
	text, err := r.text()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(f.dir, "new-")
	if err != nil {
		return err
	}
	_, err = temp.Write(text)
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), f.file(identity))
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err
}

// Forget forgets the failure of an image, and returns what it was: 0 where there was none. An error
// says why a successor would know of it all the same; then nothing is forgotten.
func (f *Failures) Forget(identity string) (devsw.Errno, error) {
	e := f.Look(identity)
	if f.dir != "" && e != 0 {
		if err := os.Remove(f.file(identity)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, identity)
	return e, nil
}
