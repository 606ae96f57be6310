package guesttests

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// imageServers is "image-servers [-kill | -stop | -continue] N": waits until the script's vdevs
// have N qemu-nbd running, and sends them a signal then.
func imageServers(w *world, args []string) (string, error) {
	flags := flag.NewFlagSet("image-servers", flag.ContinueOnError)
	var signal syscall.Signal
	for name, sig := range map[string]syscall.Signal{"kill": syscall.SIGKILL, "stop": syscall.SIGSTOP, "continue": syscall.SIGCONT} {
		flags.BoolFunc(name, "", func(string) error { signal = sig; return nil })
	}
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	want, err := strconv.Atoi(flags.Arg(0))
	if err != nil || flags.NArg() != 1 {
		return "", errors.New("usage: image-servers [-kill | -stop | -continue] N")
	}
	ctx, cancel := w.context()
	defer cancel()
	for {
		pids, err := w.imageServers()
		if err != nil {
			return "", err
		}
		if len(pids) == want {
			for _, pid := range pids {
				if signal != 0 {
					err = errors.Join(err, syscall.Kill(pid, signal))
				}
			}
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%d qemu-nbd run, and there should be %d", len(pids), want)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// imageServers gives those that have the script's folder in their environment, as its vdevs do.
// They work in / like any daemon.
func (w *world) imageServers() (pids []int, err error) {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, process := range all {
		line, _ := os.ReadFile(filepath.Join(process, "cmdline"))
		words := bytes.Split(line, []byte{0})
		// What scripts/setup unpacked is an argument of its ld.so; a shell that is about to start
		// it has it elsewhere.
		if len(words) > 3 && string(words[1]) == "--library-path" {
			words = words[3:]
		}
		if filepath.Base(string(words[0])) != "qemu-nbd" {
			continue
		}
		environment, _ := os.ReadFile(filepath.Join(process, "environ"))
		if !slices.ContainsFunc(bytes.Split(environment, []byte{0}), func(v []byte) bool { return string(v) == "TMPDIR="+w.dir }) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(process))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}
