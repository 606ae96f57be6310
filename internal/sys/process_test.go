package sys

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestASocketWithoutANameCanBeConnectedTo(t *testing.T) {
	dir := t.TempDir()
	fd, err := OpenPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	number := fd.Int()
	for range 2 {
		name := filepath.Join(dir, "socket")
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		socket, err := OpenPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if err := fd.Become(socket); err != nil {
			t.Fatal(err)
		}
		if fd.Int() != number || socket.Int() != -1 {
			t.Errorf("numbers %d and %d, want %d and none", fd.Int(), socket.Int(), number)
		}
		c, err := net.Dial("unix", "/proc/self/fd/"+strconv.Itoa(number))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		l.Close()
	}
	if _, err := OpenPath(filepath.Join(dir, "missing")); !os.IsNotExist(err) {
		t.Errorf("OpenPath of what is not there: %v", err)
	}
}

func TestAChildIsAGroupOfItsOwn(t *testing.T) {
	cmd := exec.Command("cat", "/proc/self/stat")
	cmd.SysProcAttr = ChildAttr(syscall.SIGTERM)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	// proc_pid_stat(5): pid (comm) state ppid pgrp
	if f := strings.Fields(line); f[0] != f[4] {
		t.Errorf("process %s is in group %s", f[0], f[4])
	}
}
