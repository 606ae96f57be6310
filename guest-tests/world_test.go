package guesttests

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vdev/guest-tests/internal/proxy"
	"vdev/guest-tests/internal/vm"
	"vdev/internal/test/hangfs"
)

// commandLimit is how long one step of a script may take before it counts as hanging. Emulation on
// a busy machine is slow; no test depends on how slow.
const commandLimit = 5 * time.Minute

// tester is what a script's world needs of testing.T.
type tester interface {
	testscript.T
	Name() string
	Failed() bool
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// world is what one script has made: its back-ends and its machine.
type world struct {
	t        tester
	limit    time.Duration // of one step
	dir      string        // $WORK
	path     []string      // where programs are looked for
	tools    string        // folder of the tools of the row's QEMU, for vdev; empty: the system's
	backends map[string]*backend
	machine  *vm.Machine
	devices  map[string]vm.Device // of the machine
	machines int
	last     vm.Config               // of the machine
	proxies  map[string]*proxy.Proxy // by the name of the back-end behind it
	hanging  map[string]*hangfs.FS   // by the name of the folder
	records  map[string]*record      // by the name of the NBD server behind it
	storage  map[string]string       // the NBD server of a disk that has one which is recorded
	deafness time.Duration           // QEMU's monitor's longest, of what "deaf" has measured
	agent    *vm.Console             // the port of the agents, once a machine has had one
	lines    map[string]*terminal    // by the names that the script has for them
	mutant   string                  // the vdev to test, where it is not the real one
	undo     []func() error          // at the end, the last first
}

type worldKey struct{}

// newWorld prepares a script's environment and arranges for its end.
func newWorld(env *testscript.Env, r row) error {
	w := &world{t: env.T().(tester), limit: commandLimit, dir: env.WorkDir, backends: map[string]*backend{}, devices: map[string]vm.Device{},
		proxies: map[string]*proxy.Proxy{}, hanging: map[string]*hangfs.FS{}, records: map[string]*record{}, lines: map[string]*terminal{}, storage: map[string]string{}}
	env.Values[worldKey{}] = w
	for _, p := range r {
		env.Setenv(p.key, p.value)
	}
	if version := r.value("version"); version != "" {
		q, err := vm.FindQEMU(version)
		if err != nil {
			return err
		}
		w.tools = q.Dir()
	}
	w.path = []string{filepath.Join(work, "bin")}
	// The scripts use qemu-img and qemu-io as front-ends; only 11.1's can be that.
	tools, err := vm.FindQEMU("11.1")
	if err != nil {
		return err
	}
	if tools.Dir() != "" {
		w.path = append(w.path, tools.Dir())
	}
	w.path = append(w.path, filepath.SplitList(env.Getenv("PATH"))...)
	w.path = append(w.path, "/usr/sbin", "/sbin")
	env.Setenv("PATH", strings.Join(w.path, ":"))
	env.Setenv("TMPDIR", env.WorkDir)
	repository, err := filepath.Abs("..")
	if err != nil {
		return err
	}
	env.Setenv("REPO", repository)
	if _, err := built.vdev(); err != nil {
		return err
	}
	env.Defer(w.end)
	return nil
}

// end stops everything and fails the test where something does not end as it should.
func (w *world) end() {
	failed := w.t.Failed()
	for _, f := range w.hanging {
		f.Release(hangfs.Kinds()...)
	}
	if failed {
		w.inquire()
	}
	if w.machine != nil {
		w.machine.Kill()
	}
	for name, l := range w.lines {
		if failed {
			w.t.Logf("the end of what %s has shown:\n%s", name, l.tail(2000))
		}
		l.close()
	}
	for name, p := range w.proxies {
		if failed {
			report := p.Report()
			w.t.Logf("between QEMU and %s: %v", name, report)
		}
		p.Close()
	}
	// The servers beside the test end after those that they serve.
	names := slices.SortedFunc(maps.Keys(w.backends), func(a, b string) int { return order(w.backends[a], w.backends[b]) })
	for _, b := range w.backends {
		b.cmd.Process.Signal(syscall.SIGCONT)
	}
	for _, r := range w.records {
		r.Go()
	}
	for _, name := range names {
		b := w.backends[name]
		if err := b.stop(); err != nil && !b.foreign {
			w.t.Errorf("back-end %s: %v", name, err)
			failed = true
		}
		if failed {
			w.t.Logf("%s:\n%s", filepath.Base(b.log), b.tail(100))
		}
	}
	for _, f := range w.hanging {
		if err := f.Close(); err != nil {
			w.t.Errorf("%v", err)
		}
	}
	for name, r := range w.records {
		if failed {
			w.t.Logf("between vdev and %s: %v", name, r.Report())
		}
		if err := r.Close(); err != nil {
			w.t.Errorf("the record of %s: %v", name, err)
		}
	}
	for _, undo := range slices.Backward(w.undo) {
		if err := undo(); err != nil {
			w.t.Errorf("%v", err)
		}
	}
}

// order puts what is tested before what stands beside it.
func order(a, b *backend) int {
	switch {
	case a.beside == b.beside:
		return 0
	case a.beside:
		return 1
	}
	return -1
}

// inquire logs what a failed test leaves to be seen: where the guest is, and, through SIGUSR1, what
// vdev has done.
func (w *world) inquire() {
	if w.machine != nil {
		w.t.Logf("the guest's console:\n%s", w.machine.Console.Tail(60))
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		questions := []string{"info status"}
		for n := range 4 {
			questions = append(questions, fmt.Sprint("cpu ", n), "print $pc")
		}
		for _, question := range questions {
			text, err := w.machine.Monitor(ctx, question)
			if err != nil {
				w.t.Logf("%s: %v", question, err)
				break
			}
			w.t.Logf("%s: %s", question, strings.TrimSpace(text))
		}
	}
	for _, b := range w.backends {
		if !b.killed && !b.beside {
			b.cmd.Process.Signal(syscall.SIGUSR1)
		}
	}
}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// context limits one step, in time and to the life of the back-ends: a guest whose disk has died
// waits for ever.
func (w *world) context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), w.limit, errors.New("the step hangs"))
	ctx, stop := context.WithCancelCause(ctx)
	for name, b := range w.backends {
		if b.killed {
			continue
		}
		go func() {
			select {
			case <-b.process.Ended():
				stop(fmt.Errorf("back-end %s has ended: %v", name, b.process.Err()))
			case <-ctx.Done():
			}
		}()
	}
	return ctx, func() { stop(nil); cancel() }
}

// addBackend starts a back-end on the socket of that name.
func (w *world) addBackend(name string, make server, args []string) error {
	if b := w.backends[name]; b != nil && !b.killed {
		return fmt.Errorf("back-end %s runs already", name)
	}
	socket := filepath.Join(w.dir, name+".sock")
	return w.startAs(name, socket, func() (*exec.Cmd, error) { return make(socket, slices.Clone(args)) })
}

// startAs starts the back-end of that name by a command that again makes.
func (w *world) startAs(name, socket string, again func() (*exec.Cmd, error)) error {
	cmd, err := again()
	if err != nil {
		return err
	}
	ctx, cancel := w.context()
	defer cancel()
	b, err := startBackend(ctx, cmd, w.dir, socket, filepath.Join(w.dir, name+".log"))
	if err != nil {
		return err
	}
	b.again, b.foreign = again, os.Getenv(backendEnv) == "qemu-storage-daemon"
	if was := w.backends[name]; was != nil {
		b.console = was.console
		if was.beside {
			b.foreign, b.beside = true, true
		}
	}
	w.backends[name] = b
	return nil
}

// agentBackend is the console that the agents of the script's machines are spoken to at.
const agentBackend = "agent"

// addAgent gives a machine the console whose port its agent takes commands at. The console, and the
// client at its host's end, are one for all machines of the script.
func (w *world) addAgent(ctx context.Context, c *vm.Config) error {
	if w.agent == nil {
		program, err := built.vdev()
		if err != nil {
			return err
		}
		socket, port := filepath.Join(w.dir, agentBackend+".sock"), filepath.Join(w.dir, agentBackend+".port")
		err = w.startAs(agentBackend, socket, func() (*exec.Cmd, error) {
			return w.vdevCommand(program, []string{"console", "--socket-path", socket, "--trace", "--port", "name=" + vm.AgentPort + ",driver=socket,path=" + port}), nil
		})
		if err != nil {
			return err
		}
		w.backends[agentBackend].console = true
		line, err := dialUnix(port)
		if err != nil {
			return err
		}
		w.agent = vm.NewConsole(line)
		w.undo = append(w.undo, line.Close)
	}
	b := w.backends[agentBackend]
	rings, err := b.rings(ctx)
	if err != nil {
		return err
	}
	c.Agent = w.agent
	c.Append += vm.AgentAppend
	c.Devices = append(c.Devices, vm.Device{Name: agentBackend, Socket: b.socket, Transport: vm.Port, Rings: rings})
	return nil
}

// vdev returns the program under test.
func (w *world) vdev() (string, error) {
	if w.mutant != "" {
		return w.mutant, nil
	}
	return built.vdev()
}

func (w *world) backend(name string) (*backend, error) {
	if b := w.backends[name]; b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("no back-end %s", name)
}

// start starts a machine in place of the last one, which must have ended.
func (w *world) start(c vm.Config) error {
	if w.machine != nil {
		select {
		case <-w.machine.Exited():
			w.machine.Kill()
		default:
			return errors.New("a machine runs already")
		}
	}
	w.machines++
	c.Dir = filepath.Join(w.dir, fmt.Sprintf("vm%d", w.machines))
	if err := os.Mkdir(c.Dir, 0o755); err != nil {
		return err
	}
	c.KVM = os.Getenv(kvmEnv) == "1"
	w.devices = map[string]vm.Device{}
	for _, d := range c.Devices {
		w.devices[d.Name] = d
	}
	w.last = c
	ctx, cancel := w.context()
	defer cancel()
	m, err := vm.Start(ctx, c)
	w.machine = m
	return err
}

// lookPath finds a program as the script's exec does.
func (w *world) lookPath(name string) (string, error) {
	for _, dir := range w.path {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no program %s", name)
}

func (w *world) running() (*vm.Machine, error) {
	if w.machine == nil {
		return nil, errors.New("no machine runs")
	}
	return w.machine, nil
}

func (w *world) guest(command string) (string, error) {
	m, err := w.running()
	if err != nil {
		return "", err
	}
	ctx, cancel := w.context()
	defer cancel()
	return m.Guest(ctx, command)
}

// restart does something that makes the guest start again, and waits until it has.
func (w *world) restart(how func(context.Context, *vm.Machine) error) (string, error) {
	m, err := w.running()
	if err != nil {
		return "", err
	}
	ctx, cancel := w.context()
	defer cancel()
	return m.AwaitReboot(ctx, how)
}
