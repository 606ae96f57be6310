package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"vdev/internal/child"
)

// server is a process that listens at a Unix socket.
type server struct {
	name string
	*child.Process
}

// startServer starts a server on one core, or on any where cpu is negative, and waits until its
// socket is there.
func startServer(ctx context.Context, cpu int, name, socket string, command ...string) (*server, error) {
	// Not everybody removes their own.
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	p, err := child.Program{Args: command, CPU: child.On(cpu)}.Start()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s := &server{name, p}
	deadline := time.After(20 * time.Second)
	for {
		if _, err := os.Stat(socket); err == nil {
			return s, nil
		}
		select {
		case <-p.Ended():
			return nil, s.failed(errors.New("ended at its start"))
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), s.stop(ctx))
		case <-deadline:
			return nil, errors.Join(s.failed(errors.New("has made no socket")), s.stop(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// stop ends the server and waits for it. Where it has ended by itself, that is an error. What it
// has written, if anything, is shown.
func (s *server) stop(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	if said := s.Said(); said != "" {
		fmt.Fprintf(os.Stderr, "%s: %s\n", s.name, said)
	}
	return nil
}

// failed makes an error of err that tells all about the server.
func (s *server) failed(err error) error { return fmt.Errorf("%s: %w", s.name, s.Error(err)) }
