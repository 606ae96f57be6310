package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func init() {
	commands["ports"] = command{usage: ": the ports of virtio consoles", run: func(params) (string, error) { return ports() }}
}

const portClass = "/sys/class/virtio-ports"

// ports describes each port in a line: its node, its virtio device and its name.
func ports() (string, error) {
	nodes, err := filepath.Glob(portClass + "/*")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, n := range nodes {
		dev, err := filepath.EvalSymlinks(n + "/device")
		if err != nil {
			continue // it has just gone
		}
		fmt.Fprintf(&b, "%s %s %s\n", filepath.Base(n), filepath.Base(dev), portName(n))
	}
	return b.String(), nil
}

func portName(node string) string {
	name, _ := os.ReadFile(node + "/name")
	return strings.TrimSpace(string(name))
}

// findPort returns the entry in sysfs of the port of that name, or "".
func findPort(name string) string {
	nodes, _ := filepath.Glob(portClass + "/*")
	for _, n := range nodes {
		if portName(n) == name || filepath.Base(n) == name {
			return n
		}
	}
	return ""
}

// openLine opens a port, by its name or its node's, or a terminal, which it makes raw: hvc0, ttyS0,
// or a path. It waits until there is such a thing, and until nobody else has it open, or until quit
// is closed.
func openLine(name string, quit <-chan struct{}) (*os.File, error) {
	for {
		select {
		case <-quit:
			return nil, errQuit
		default:
		}
		path := device(name)
		port := findPort(name)
		if port != "" {
			path = "/dev/" + filepath.Base(port)
		}
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
		switch {
		case err == nil && port == "":
			if err := rawLine(f); err != nil {
				f.Close()
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			return f, nil
		case err == nil:
			return f, nil
		case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.EBUSY) && !isGone(err):
			return nil, err
		}
		time.Sleep(again)
	}
}

// servePort holds one conversation after the other at the port that the command line names. It
// comes back as another device after each time that it was taken away.
func (a *agent) servePort() {
	name := setting("vdev.agent", "")
	if name == "" {
		return
	}
	for {
		f, err := openLine(name, nil)
		if err == nil {
			err = errors.Join(a.serve(patient{f}), f.Close())
		}
		fmt.Fprintf(a.console, "\nagent: port %s: %v\n", name, err)
	}
}
