package guesttests

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// standInEnv makes this test binary play a back-end: one that ends well, or one that does what the variable says.
const standInEnv = "VDEV_STAND_IN"

func standIn(how string) int {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	socket := os.Args[len(os.Args)-1]
	if how == "early" {
		fmt.Fprintln(os.Stderr, "cannot do it")
		return 1
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stderr, "at your service")
	<-terminated
	switch how {
	case "status":
		l.Close()
		return 66
	case "socket":
		return 0
	case "child":
		if err := exec.Command("sleep", "60").Start(); err != nil {
			return 1
		}
	}
	l.Close()
	return 0
}

func startStandIn(t *testing.T, how string) (*backend, error) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(self, socket)
	cmd.Env = append(os.Environ(), standInEnv+"="+how)
	return startBackend(context.Background(), cmd, dir, socket, filepath.Join(dir, "log"))
}

func TestABackendIsHeldToItsEnd(t *testing.T) {
	for how, want := range map[string]string{
		"well":   "",
		"status": "exit status 66",
		"socket": "left its socket behind",
		"child":  "left a process behind",
	} {
		t.Run(how, func(t *testing.T) {
			b, err := startStandIn(t, how)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.awaitLog(t.Context(), regexp.MustCompile("at your service")); err != nil {
				t.Error(err)
			}
			err = b.stop()
			if got := fmt.Sprint(err); want == "" && err != nil || want != "" && !strings.Contains(got, want) {
				t.Errorf("stop: %v; want %q", err, want)
			}
			if exists(b.socket) {
				t.Error("the socket is still there")
			}
			if err := syscall.Kill(-b.cmd.Process.Pid, 0); err == nil && how != "child" {
				t.Error("a process is still there")
			}
		})
	}
}

func TestABackendThatCannotStartSaysWhy(t *testing.T) {
	if _, err := startStandIn(t, "early"); err == nil || !strings.Contains(err.Error(), "cannot do it") {
		t.Errorf("start: %v; want its last words", err)
	}
}
