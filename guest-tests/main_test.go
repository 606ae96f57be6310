// Package guesttests runs guests under QEMU on disks that vdev serves. The tests are the scripts in
// testdata/script, one for each thing that must be seen working; the README there lists the
// commands they are written in. They need what scripts/setup fetches and run under scripts/test.
package guesttests

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vdev/guest-tests/internal/initrd"
	"vdev/guest-tests/internal/vm"
)

// work is the folder for everything the tests make. Its name is short: sockets are in it.
var work string

func TestMain(m *testing.M) {
	if how := os.Getenv(standInEnv); how != "" {
		os.Exit(standIn(how))
	}
	os.Exit(func() int {
		var err error
		work, err = os.MkdirTemp("", "vdev")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if os.Getenv("VDEV_KEEP") == "" {
			defer os.RemoveAll(work)
		} else {
			fmt.Fprintln(os.Stderr, "everything is kept in", work)
		}
		return m.Run()
	}())
}

func TestGuests(t *testing.T) {
	if os.Getenv("VDEV_GUEST_TESTS") == "" {
		t.Skip("the guest tests take minutes; scripts/test runs them, and so does VDEV_GUEST_TESTS=1")
	}
	if err := checkEnvironment(os.Getenv); err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	t.Cleanup(func() { // when all have ended
		if err := used.check(os.Getenv); err != nil {
			t.Error(err)
		}
	})
	for _, script := range scripts {
		rows, err := readMatrix(script, os.Getenv(rowsEnv) == "all")
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txtar"), func(t *testing.T) {
			// Else the next script waits for the last row of this one, and a processor with it.
			t.Parallel()
			for _, row := range rows {
				t.Run(row.name(), func(t *testing.T) {
					t.Parallel()
					runScript(t, script, row)
				})
			}
		})
	}
}

// scriptLimit ends what a script has started with exec, if it hangs.
const scriptLimit = 25 * time.Minute

// runScript runs one script with one row of its matrix.
func runScript(t *testing.T, script string, row row) {
	used.rows.Add(1)
	if row.value("aio") == "io_uring" && !hasIOUring() {
		t.Skip("the host refuses io_uring")
	}
	root, err := os.MkdirTemp(work, "")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	t.Cleanup(func() {
		verdict := "ok"
		switch {
		case t.Failed():
			verdict = "FAIL"
		case t.Skipped():
			verdict = "skip"
		}
		fmt.Fprintf(os.Stderr, "    %-4s %6.1fs  %s\n", verdict, time.Since(begin).Seconds(), strings.TrimPrefix(t.Name(), "TestGuests/"))
		if os.Getenv("VDEV_KEEP") == "" {
			os.RemoveAll(root)
		}
	})
	deadline := begin.Add(scriptLimit)
	if end, ok := t.Deadline(); ok && end.Before(deadline) {
		deadline = end
	}
	testscript.RunT(within{t}, testscript.Params{
		Files:               []string{script},
		WorkdirRoot:         root,
		Deadline:            deadline,
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Cmds:                commands,
		Condition:           row.condition,
		Setup:               func(env *testscript.Env) error { return newWorld(env, row) },
	})
}

// within runs a script as the test it is given, not as a test below it: the matrix has named it
// already.
type within struct{ *testing.T }

func (w within) Run(_ string, f func(testscript.T)) { f(w) }
func (within) Parallel()                            {}

// Verbose is for -v. go test -json gives -test.v=test2json, and wants to know of everything, but
// nobody reads it all.
func (within) Verbose() bool {
	return testing.Verbose() && flag.Lookup("test.v").Value.String() != "test2json"
}

// givenKernel is the condition of a script that needs a NetBSD kernel. It is not "netbsd":
// testscript answers the names of systems itself, with what the tests run on.
const givenKernel = "netbsd-kernel"

// condition knows what a script may depend on. "KEY:VALUE" is for one value of its matrix. A name
// that testscript knows too does not get here: TestEveryConditionOfAScriptIsOurs.
func (r row) condition(name string) (bool, error) {
	switch name {
	case "mounts":
		return canMount(), nil
	case givenKernel:
		return os.Getenv(kernelEnv) != "", nil
	case "all-rows":
		return os.Getenv(rowsEnv) == "all", nil
	}
	if key, value, ok := strings.Cut(name, ":"); ok {
		if r.value(key) == "" {
			return false, fmt.Errorf("condition %q: the script has no matrix of %s", name, key)
		}
		return r.value(key) == value, nil
	}
	return false, fmt.Errorf("no condition %q", name)
}

// The environment that says what is to be tested, beside VDEV_GUEST_TESTS and VDEV_KEEP.
const (
	kernelEnv  = "VDEV_NETBSD_KERNEL"
	kvmEnv     = "VDEV_KVM"
	backendEnv = "VDEV_BACKEND"
	agentEnv   = "VDEV_AGENT"
	// "all": scripts have all combinations, also where they ask for fewer
	rowsEnv = "VDEV_GUEST_ROWS"
)

// checkEnvironment refuses what would have no effect.
func checkEnvironment(getenv func(string) string) error {
	if name := getenv(kernelEnv); name != "" {
		if f, err := os.Open(name); err != nil {
			return fmt.Errorf("%s: %w", kernelEnv, err)
		} else {
			f.Close()
		}
	}
	if v := getenv(kvmEnv); v != "" && v != "0" && v != "1" {
		return fmt.Errorf("%s=%s: it may be 0 or 1", kvmEnv, v)
	}
	if v := getenv(rowsEnv); v != "" && v != "all" {
		return fmt.Errorf("%s=%s: it may be all", rowsEnv, v)
	}
	if v := getenv(agentEnv); v != "" && v != "port" && v != "serial" {
		return fmt.Errorf("%s=%s: it may be port or serial", agentEnv, v)
	}
	if v := getenv(backendEnv); v != "" && v != "vdev" && v != "qemu-storage-daemon" {
		return fmt.Errorf("%s=%s: it may be vdev or qemu-storage-daemon", backendEnv, v)
	}
	return nil
}

// usage is what a run has done of what it was asked for.
type usage struct {
	rows   atomic.Int64 // begun
	netbsd atomic.Int64 // guests that have booted the kernel that was given
}

var used usage

// check fails a run that was asked for something and has not done it: nobody would notice.
func (u *usage) check(getenv func(string) string) error {
	if u.rows.Load() == 0 {
		return fmt.Errorf("no guest test was run: -run %q and -skip %q leave none", flag.Lookup("test.run").Value, flag.Lookup("test.skip").Value)
	}
	if kernel := getenv(kernelEnv); kernel != "" && u.netbsd.Load() == 0 {
		return fmt.Errorf("the kernel %s was given (--kernel, %s), and no guest has booted it", kernel, kernelEnv)
	}
	return nil
}

// canMount says whether a process may have file systems of its own, as root or in a user namespace.
var canMount = sync.OnceValue(func() bool {
	return exec.Command("unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "none", "/mnt").Run() == nil
})

// hasIOUring says whether the host lets us have an io_uring; containers often do not. Where it
// does, the call gets as far as to find that it was given no parameters.
func hasIOUring() bool {
	const ioUringSetup = 425
	_, _, e := syscall.Syscall(ioUringSetup, 1, 0, 0)
	return e == syscall.EFAULT
}

// built makes programs and images once for all tests.
var built = struct {
	vdev, rng, ramdisk, agent, initramfs, netbsdAgent func() (string, error)
}{
	vdev: sync.OnceValues(func() (string, error) {
		args := []string{"build"}
		if raceEnabled {
			args = append(args, "-race")
		}
		return build("vdev", "../cmd/vdev", nil, args)
	}),
	rng:     sync.OnceValues(func() (string, error) { return buildExample("rng") }),
	ramdisk: sync.OnceValues(func() (string, error) { return buildExample("ramdisk") }),
	agent: sync.OnceValues(func() (string, error) {
		return build("agent", "./agent", []string{"GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0"}, []string{"build"})
	}),
	netbsdAgent: sync.OnceValues(func() (string, error) {
		return build("agent-netbsd", "./agent", []string{"GOOS=netbsd", "GOARCH=amd64", "CGO_ENABLED=0"}, []string{"build"})
	}),
}

func init() {
	built.initramfs = sync.OnceValues(func() (string, error) {
		agent, err := built.agent()
		if err != nil {
			return "", err
		}
		linux, err := vm.LinuxDir()
		if err != nil {
			return "", err
		}
		data, err := initrd.Build(linux, agent)
		if err != nil {
			return "", err
		}
		name := filepath.Join(work, "initramfs")
		return name, os.WriteFile(name, data, 0o644)
	})
}

// buildExample builds a module of its own in the folder of that name.
func buildExample(name string) (string, error) {
	args := []string{"-C", name, "build"}
	if raceEnabled {
		args = append(args, "-race")
	}
	return build(name, ".", []string{"GOWORK=off"}, args)
}

func build(name, pkg string, env, args []string) (string, error) {
	out := filepath.Join(work, "bin", name)
	cmd := exec.Command("go", append(args, "-trimpath", "-o", out, pkg)...)
	cmd.Env = append(os.Environ(), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w\n%s", pkg, err, text)
	}
	return out, nil
}

// exists is os.Stat where only the presence of a file is asked for.
func exists(name string) bool {
	_, err := os.Lstat(name)
	return !errors.Is(err, fs.ErrNotExist)
}
