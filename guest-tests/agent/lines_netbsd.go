package main

import (
	"os"
	"syscall"
)

// openLine opens a terminal by its name in /dev, or a path, and makes it raw.
func openLine(name string, _ <-chan struct{}) (*os.File, error) {
	f, err := os.OpenFile(device(name), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if err := rawLine(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// servePort does nothing: NetBSD's driver has no ports with names.
func (*agent) servePort() {}
