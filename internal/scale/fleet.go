package scale

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser/vhostusertest"
)

// process is a back-end that was started.
type process struct {
	cmd    *exec.Cmd
	exited chan error
	said   *output
}

// output keeps what a process has written, for an error.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(o.text.String())
}

// start starts a command on one processor, or on any where cpu is negative. It gets the file, where there is one, as descriptor 3.
func start(cpu int, command []string, file *os.File) (*process, error) {
	if cpu >= 0 {
		command = append([]string{"taskset", "-c", strconv.Itoa(cpu)}, command...)
	}
	p := &process{cmd: exec.Command(command[0], command[1:]...), exited: make(chan error, 1), said: new(output)}
	p.cmd.SysProcAttr = sys.GroupAttr()
	p.cmd.Stdout, p.cmd.Stderr = p.said, p.said
	if file != nil {
		p.cmd.ExtraFiles = []*os.File{file}
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.exited <- p.cmd.Wait() }()
	return p, nil
}

// pid is the back-end's process: taskset has become it.
func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the process.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return nil
	case <-time.After(20 * time.Second):
	}
	_ = p.cmd.Process.Kill()
	<-p.exited
	return fmt.Errorf("%s did not end on SIGTERM: %s", p.cmd, p.said)
}

// dial connects to a socket that the process is about to make.
func (p *process) dial(socket string) (*net.UnixConn, error) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
		if err == nil {
			return c, nil
		}
		if time.Now().After(deadline) || !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		select {
		case end := <-p.exited:
			p.exited <- end
			return nil, fmt.Errorf("%s: %w: %s", p.cmd, end, p.said)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// memory is what the process has of the machine's memory, in bytes: private is what nobody else maps, which is all but guest memory, and
// anonymous what no file is behind (/proc/PID/smaps_rollup).
func (p *process) memory() (private, anonymous int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid()))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		var clean, dirty, anon int64
		// Each line is one of them at most; the others stay 0.
		_, _ = fmt.Sscanf(line, "Private_Clean: %d kB", &clean)
		_, _ = fmt.Sscanf(line, "Private_Dirty: %d kB", &dirty)
		_, _ = fmt.Sscanf(line, "Anonymous: %d kB", &anon)
		private, anonymous = private+(clean+dirty)<<10, anonymous+anon<<10
	}
	return private, anonymous, nil
}

// entries is how many entries there are in a folder that /proc has of the process: fd or task.
func (p *process) entries(of string) (int, error) {
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", p.pid(), of))
	return len(names), err
}

// fleet is vdev with many disks, each with a guest of its own.
type fleet struct {
	p      *process
	guests []*guest
}

// newFleet has vdev serve n disks of a kind, on one processor or on any where cpu is negative, and connects a guest to each, with so many
// slots, which has read once.
func (c *Config) newFleet(cpu, n int, driver string, depth func(i int) int) (_ *fleet, err error) {
	socket := func(i int) string { return filepath.Join(c.Dir, fmt.Sprintf("%d.sock", i)) }
	var conf strings.Builder
	for i := range n {
		fmt.Fprintf(&conf, "[[device]]\nname = \"d%d\"\nsocket-path = %q\ndriver = %q\n", i, socket(i), driver)
	}
	name := filepath.Join(c.Dir, "many.toml")
	if err := os.WriteFile(name, []byte(conf.String()), 0o600); err != nil {
		return nil, err
	}
	f := new(fleet)
	if f.p, err = start(cpu, []string{c.VDev, "serve", "--log-level", "warn", name}, nil); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%w: %s", err, f.p.said), f.close())
		}
	}()
	for i := range n {
		if err := f.connect(socket(i), depth(i)); err != nil {
			return nil, fmt.Errorf("disk %d: %w", i, err)
		}
	}
	return f, nil
}

// connect connects one guest, which reads.
func (f *fleet) connect(socket string, depth int) error {
	conn, err := f.p.dial(socket)
	if err != nil {
		return err
	}
	front := vhostusertest.New(conn)
	g, err := newGuest(front, depth)
	if err != nil {
		front.Close()
		return err
	}
	f.guests = append(f.guests, g)
	return g.read()
}

// close ends it all.
func (f *fleet) close() error {
	for _, g := range f.guests {
		g.f.Close()
		g.close()
	}
	return f.p.stop()
}
