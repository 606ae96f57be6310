package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"vdev/internal/sys"
)

// server is a process that listens at a Unix socket.
type server struct {
	name   string
	socket string
	cmd    *exec.Cmd
	ended  chan struct{} // closed when it has; err is valid then
	err    error
}

// startServer starts a server on one core, or on any where cpu is negative, and waits until its socket is there.
func startServer(ctx context.Context, cpu int, name, socket, command string, args []string) (*server, error) {
	// Not everybody removes their own.
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// The end of ctx ends the work; then whoever does it stops the server.
	s := &server{name: name, socket: socket, cmd: pinned(context.WithoutCancel(ctx), cpu, command, args), ended: make(chan struct{})}
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		defer close(s.ended)
		s.err = s.cmd.Wait()
	}()
	deadline := time.After(20 * time.Second)
	for {
		if _, err := os.Stat(socket); err == nil {
			return s, nil
		}
		select {
		case <-s.ended:
			return nil, fmt.Errorf("%s ended at its start: %w (%s)", name, s.err, s.cmd)
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), s.stop())
		case <-deadline:
			return nil, errors.Join(fmt.Errorf("%s has made no socket (%s)", name, s.cmd), s.stop())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// stop ends the server and waits for it. Where it has ended by itself, that is an error.
func (s *server) stop() error {
	select {
	case <-s.ended:
		return fmt.Errorf("%s had ended: %w", s.name, s.err)
	default:
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(10 * time.Second):
	}
	err := errors.Join(fmt.Errorf("%s did not end on SIGTERM", s.name), s.cmd.Process.Kill())
	<-s.ended
	return err
}

// pinned returns a command that runs on one core, or on any where cpu is negative. A terminal's signals do not
// reach it; the end of ctx is a request to end.
func pinned(ctx context.Context, cpu int, command string, args []string) *exec.Cmd {
	if cpu >= 0 {
		command, args = "taskset", append([]string{"-c", strconv.Itoa(cpu), command}, args...)
	}
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = sys.GroupAttr()
	cmd.WaitDelay = 5 * time.Second
	return cmd
}
