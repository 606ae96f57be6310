package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// command is one thing the agent can do.
type command struct {
	usage string
	words int    // how many arguments it takes
	more  bool   // or more
	keys  string // the key=value options and flags it takes, separated by blanks
	run   func(params) (string, error)
}

const ioKeys = "off size bs seed workers direct rand sync flush check"

// commands are those of every system; the files for one system add theirs.
var commands = map[string]command{
	"info":   {usage: "", run: func(params) (string, error) { return disks() }},
	"write":  {usage: "FILE [seed=N] [off=B] [size=B] [bs=B|B-B] [workers=N] [direct] [rand] [sync] [check] [flush]", words: 1, keys: ioKeys, run: func(p params) (string, error) { return transfer(p, doWrite) }},
	"verify": {usage: "FILE [seed=N] [off=B] [size=B] [bs=B|B-B] [workers=N] [direct] [rand]", words: 1, keys: ioKeys, run: func(p params) (string, error) { return transfer(p, doVerify) }},
	"read":   {usage: "FILE [off=B] [size=B] [bs=B|B-B] [workers=N] [direct] [rand]", words: 1, keys: ioKeys, run: func(p params) (string, error) { return transfer(p, doRead) }},
	"zeros":  {usage: "FILE [off=B] [size=B] [bs=B|B-B]: expects nothing but zeros", words: 1, keys: ioKeys, run: func(p params) (string, error) { return transfer(p, doZeros) }},
	"sum":    {usage: "FILE [size=B]: its SHA-256", words: 1, keys: "size", run: sum},
	"flush":  {usage: "FILE: what was written is on stable storage", words: 1, run: flush},
	"ls":     {usage: "DIR", words: 1, run: list},
	"run":    {usage: "COMMAND: for the shell", words: 1, more: true, run: shellCommand},
	"sync":   {usage: "", run: func(params) (string, error) { return "", syncAll() }},

	"reboot":   {usage: "", run: func(params) (string, error) { return "", stop(haltReboot) }},
	"poweroff": {usage: "", run: func(params) (string, error) { return "", stop(haltPowerOff) }},
}

func init() {
	commands["help"] = command{run: func(params) (string, error) {
		var b strings.Builder
		for _, name := range slices.Sorted(maps.Keys(commands)) {
			fmt.Fprintf(&b, "%s %s\n", name, commands[name].usage)
		}
		return b.String(), nil
	}}
}

// stop makes the error that stops the system once the command was answered.
func stop(how haltKind) error {
	if err := syncAll(); err != nil {
		return err
	}
	return &haltError{how}
}

// params are a command's arguments, taken apart.
type params struct {
	words []string
	opts  map[string]string // key=value; a flag has the value ""
	line  string
	// closed when the command is to end; nil for one that was not started in the background
	quit <-chan struct{}
}

func parse(args []string, keys string) params {
	p := params{opts: map[string]string{}}
	known := strings.Fields(keys)
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		if slices.Contains(known, k) {
			p.opts[k] = v
		} else {
			p.words = append(p.words, a)
		}
	}
	return p
}

func (p params) flag(key string) bool { _, ok := p.opts[key]; return ok }

// number reads an option in bytes or pieces; K, M and G are powers of 1024.
func (p params) number(key string, otherwise int64) (int64, error) {
	v, ok := p.opts[key]
	if !ok {
		return otherwise, nil
	}
	return number(v)
}

func number(v string) (int64, error) {
	digits := strings.TrimRight(v, "kKMG")
	shift := map[string]int{"": 0, "k": 10, "K": 10, "M": 20, "G": 30}
	s, ok := shift[v[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n < 0 || n > 1<<62>>s {
		return 0, fmt.Errorf("%q is not a number", v)
	}
	return n << s, nil
}

// device turns a disk's bare name into its path; everything else is a path already.
func device(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return "/dev/" + name
}

func sum(p params) (string, error) {
	f, err := os.Open(device(p.words[0]))
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := p.number("size", 1<<62)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	n, err := io.CopyBuffer(h, struct{ io.Reader }{io.LimitReader(f, size)}, make([]byte, 1<<20))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x %d bytes", h.Sum(nil), n), nil
}

func flush(p params) (string, error) {
	f, err := os.OpenFile(device(p.words[0]), os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	return "", errors.Join(flushFile(f), f.Close())
}

func list(p params) (string, error) {
	entries, err := os.ReadDir(p.words[0])
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintln(&b, e.Name())
	}
	return b.String(), nil
}

func shellCommand(p params) (string, error) {
	_, text, _ := strings.Cut(p.line, "run ")
	cmd := exec.Command("/bin/sh", "-c", text)
	cmd.Env = []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/"}
	out, err := cmd.CombinedOutput()
	return string(bytes.TrimRight(out, "\n")), err
}
