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
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// standInEnv makes this test binary play a back-end: one that ends well, or one that does what the
// variable says.
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

// asked runs a script that is one line, and tells whether its command was reached and what
// conditions the harness was asked for.
func asked(t *testing.T, r row, line string) (reached bool, names []string) {
	t.Helper()
	dir := t.TempDir()
	script := filepath.Join(dir, "x.txtar")
	if err := os.WriteFile(script, []byte(line+" reach\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	testscript.RunT(within{t}, testscript.Params{
		Files:       []string{script},
		WorkdirRoot: dir,
		Cmds:        map[string]func(*testscript.TestScript, bool, []string){"reach": func(*testscript.TestScript, bool, []string) { reached = true }},
		Condition: func(name string) (bool, error) {
			names = append(names, name)
			return r.condition(name)
		},
	})
	return reached, names
}

func TestAKernelThatIsGivenIsForTheNetBSDScripts(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, given := range []string{"", kernel} {
		t.Setenv(kernelEnv, given)
		if err := checkEnvironment(os.Getenv); err != nil {
			t.Error(err)
		}
		if got, _ := asked(t, nil, "["+givenKernel+"]"); got != (given != "") {
			t.Errorf("with the kernel %q: %v", given, got)
		}
	}
	text, err := os.ReadFile("testdata/script/netbsd.txtar")
	if err != nil || !strings.Contains(string(text), "\n[!"+givenKernel+"] skip ") {
		t.Errorf("netbsd.txtar does not depend on the kernel: %v", err)
	}
}

var conditions = regexp.MustCompile(`(?m)^(?:\[!?[^\]\n]+\] *)+`)

// testscript answers some names itself, and never asks. A value that no row has is as bad: what
// depends on it never runs.
func TestEveryConditionOfAScriptIsOurs(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	ours := map[string]bool{}
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		rows, err := readMatrix(script, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, all := range conditions.FindAllString(string(text), -1) {
			for name := range strings.FieldsFuncSeq(all, func(r rune) bool { return strings.ContainsRune("[!] ", r) }) {
				if key, value, ok := strings.Cut(name, ":"); ok {
					if !slices.ContainsFunc(rows, func(r row) bool { return r.value(key) == value }) {
						t.Errorf("%s: [%s]: no row has that", script, name)
					}
					continue
				}
				if _, ok := ours[name]; !ok {
					_, names := asked(t, rows[0], "["+name+"]")
					ours[name] = slices.Contains(names, name)
				}
				if !ours[name] {
					t.Errorf("%s: [%s]: testscript answers that itself", script, name)
				}
			}
		}
	}
	if _, names := asked(t, nil, "[netbsd]"); len(names) != 0 {
		t.Error("testscript asks for a system's name: this test finds nothing")
	}
}

func TestWhatWasAskedForIsDoneOrFails(t *testing.T) {
	for _, c := range []struct {
		rows, netbsd int64
		kernel, want string
	}{
		{1, 0, "", ""},
		{1, 1, "k", ""},
		{1, 0, "k", "no guest has booted it"},
		{0, 0, "", "no guest test was run"},
	} {
		var u usage
		u.rows.Store(c.rows)
		u.netbsd.Store(c.netbsd)
		err := u.check(func(name string) string {
			if name == kernelEnv {
				return c.kernel
			}
			return ""
		})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for name, value := range map[string]string{kernelEnv: "/nowhere", kvmEnv: "yes", backendEnv: "spdk", agentEnv: "telnet", rowsEnv: "few"} {
		err := checkEnvironment(func(n string) string {
			if n == name {
				return value
			}
			return ""
		})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}
