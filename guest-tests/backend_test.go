package guesttests

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vdev/guest-tests/internal/vm"
	"vdev/internal/child"
)

// endLimit is how long a back-end may take to end once it was asked to, before it counts as
// hanging.
const endLimit = 30 * time.Second

// backend is a vhost-user back-end that runs.
type backend struct {
	socket  string
	log     string // file with what it writes
	cmd     *exec.Cmd
	process *child.Process
	killed  bool // by the script, which then does not expect a good end

	foreign   bool // not vdev: how it ends is not our business
	beside    bool // not under test at all: it serves what is, such as an NBD server
	inherited bool // the socket is not the back-end's to remove
	console   bool // not a disk

	// Of a vdev that serves several disks, each is a back-end of its own, but for its process,
	// which is the whole's.
	name  string // of the device
	of    string // the whole's name
	whole *backend
	parts []*backend

	again func() (*exec.Cmd, error) // makes the command that started it once more
}

// server makes the command line of a back-end from vdev's arguments.
type server func(socket string, args []string) (*exec.Cmd, error)

// theServer is the program under test: vdev, or, with VDEV_BACKEND=qemu-storage-daemon, the one
// that the scripts can be tried on when they themselves are in doubt.
func theServer(w *world) server {
	if os.Getenv(backendEnv) == "qemu-storage-daemon" {
		return storageDaemon
	}
	return func(socket string, args []string) (*exec.Cmd, error) {
		program, err := w.vdev()
		if err != nil {
			return nil, err
		}
		return w.vdevCommand(program, slices.Insert(slices.Clone(args), min(1, len(args)), "--socket-path", socket)), nil
	}
}

// vdevCommand runs a vdev with these arguments.
func (w *world) vdevCommand(program string, args []string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	// Races are reported in the log and in the exit status, which must be 0.
	cmd.Env = append(os.Environ(), "GORACE=halt_on_error=0 exitcode=66 atexit_sleep_ms=10", "TMPDIR="+w.dir)
	if w.tools != "" {
		cmd.Env = append(cmd.Env, "PATH="+w.tools+":"+os.Getenv("PATH"))
	}
	return cmd
}

// storageDaemon serves what can be said to QEMU's own back-end.
func storageDaemon(socket string, args []string) (*exec.Cmd, error) {
	q, err := vm.FindQEMU("11.1")
	if err != nil {
		return nil, err
	}
	node, export := "driver=file,filename=", "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path="+socket
	writable, cache := "on", ""
	for i := 1; i < len(args); i++ {
		value := ""
		if i+1 < len(args) {
			value = args[i+1]
		}
		switch args[i] {
		case "--blk-file":
			node += value
		case "--num-queues":
			export += ",num-queues=" + value
		case "--logical-block-size":
			export += ",logical-block-size=" + value
		case "--driver":
			uri, ok := strings.CutPrefix(value, "nbd,uri=nbd+unix:///d?socket=")
			if !ok {
				return nil, fmt.Errorf("qemu-storage-daemon cannot do --driver %s", value)
			}
			node = "driver=nbd,export=d,server.type=unix,server.path=" + uri
		case "--serial", "--aio", "--cancel-after":
		case "--read-only":
			writable = "off"
			continue
		case "--direct":
			cache = ",cache.direct=on"
			continue
		case "--trace":
			continue
		default:
			return nil, fmt.Errorf("qemu-storage-daemon cannot do %s", args[i])
		}
		i++
	}
	return exec.Command(q.Program("qemu-storage-daemon"), "--blockdev", node+",node-name=disk,discard=unmap"+cache,
		"--export", export+",writable="+writable), nil
}

// startBackend starts cmd, which is to listen on the socket, and waits until it does.
func startBackend(ctx context.Context, cmd *exec.Cmd, dir, socket, log string) (*backend, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := &backend{socket: socket, log: log, cmd: cmd, inherited: len(cmd.ExtraFiles) > 0}
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = f, f
	b.process, err = child.Start(cmd, syscall.SIGKILL)
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	if err != nil {
		return nil, err
	}
	for !listening(socket) {
		select {
		case <-b.process.Ended():
			return nil, fmt.Errorf("%s ended before it listened: %v\n%s", cmd.Args[0], b.process.Err(), b.tail(20))
		case <-ctx.Done():
			b.kill()
			return nil, fmt.Errorf("%s does not listen: %w\n%s", cmd.Args[0], context.Cause(ctx), b.tail(20))
		case <-time.After(5 * time.Millisecond):
		}
	}
	return b, nil
}

// listening asks the kernel whether anybody listens on a socket. To connect would be to be a
// front-end.
func listening(socket string) bool {
	const acceptsConnections = "00010000"
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return false
	}
	for lines := bufio.NewScanner(bytes.NewReader(table)); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) == 8 && f[3] == acceptsConnections && f[7] == socket {
			return true
		}
	}
	return false
}

// stop asks the back-end to end and checks that it does so well and leaves nothing behind.
func (b *backend) stop() error {
	if b.killed {
		return nil
	}
	if b.whole != nil {
		return b.whole.stop()
	}
	b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-b.process.Ended():
	case <-time.After(endLimit):
		// SIGABRT makes a Go program print what its goroutines do.
		b.cmd.Process.Signal(syscall.SIGABRT)
		select {
		case <-b.process.Ended():
		case <-time.After(5 * time.Second):
		}
		b.kill()
		return fmt.Errorf("%s does not end on SIGTERM", b.cmd.Args[0])
	}
	b.gone()
	var errs []error
	if b.process.Err() != nil {
		errs = append(errs, fmt.Errorf("%s ended with %w", b.cmd.Args[0], b.process.Err()))
	}
	if err := syscall.Kill(-b.cmd.Process.Pid, 0); err == nil {
		syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
		errs = append(errs, fmt.Errorf("%s has left a process behind", b.cmd.Args[0]))
	}
	if b.inherited {
		os.Remove(b.socket)
	}
	for _, b := range b.all() {
		if exists(b.socket) {
			errs = append(errs, fmt.Errorf("%s has left its socket behind: %s", b.cmd.Args[0], filepath.Base(b.socket)))
			os.Remove(b.socket)
		}
	}
	return errors.Join(errs...)
}

// all are the back-ends that end with a process, which is b's.
func (b *backend) all() []*backend { return append(slices.Clone(b.parts), b) }

// gone notes that the process has ended, or is about to, as the script has asked for.
func (b *backend) gone() {
	for _, b := range b.all() {
		b.killed = true
	}
}

// kill ends the back-end as a crash would, and removes what a crash leaves behind.
func (b *backend) kill() {
	b.crash()
	for _, b := range b.all() {
		os.Remove(b.socket)
	}
}

// crash ends the back-end with SIGKILL.
func (b *backend) crash() {
	if b.whole != nil {
		b = b.whole
	}
	b.gone()
	syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
	<-b.process.Ended()
}

func (b *backend) tail(n int) string {
	text, _ := os.ReadFile(b.log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// ringsLine is where vdev says how many rings QEMU's device for a console must have.
var ringsLine = regexp.MustCompile(`num_vqs=(\d+)`)

// rings returns how many rings a console has, or 0 for a disk.
func (b *backend) rings(ctx context.Context) (int, error) {
	if !b.console {
		return 0, nil
	}
	line := ringsLine
	if b.whole != nil {
		line = regexp.MustCompile(`(?m)^.*\b` + regexp.QuoteMeta(b.name) + `\b.*num_vqs=(\d+)`)
	}
	if err := b.awaitLog(ctx, line); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(b.log)
	if err != nil {
		return 0, err
	}
	all := line.FindAllSubmatch(text, -1)
	return strconv.Atoi(string(all[len(all)-1][1]))
}

// awaitLog waits until the back-end has written something. Its log is a file, so it is looked at
// again and again.
func (b *backend) awaitLog(ctx context.Context, re *regexp.Regexp) error {
	for {
		ended := false
		select {
		case <-b.process.Ended():
			ended = true
		default:
		}
		if text, err := os.ReadFile(b.log); err != nil {
			return err
		} else if re.Match(text) {
			return nil
		}
		if ended {
			return fmt.Errorf("%s has ended and never wrote %s", filepath.Base(b.log), re)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing in %s matches %s: %w", filepath.Base(b.log), re, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
