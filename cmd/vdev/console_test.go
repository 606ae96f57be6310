package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"

	"vdev/internal/control"
	"vdev/internal/test/consoletest"
	"vdev/vhostuser/vhostusertest"
)

// consoleGuest makes a Linux guest with the console whose socket is at path.
func consoleGuest(t *testing.T, path string) *consoletest.Guest {
	t.Helper()
	f, err := vhostusertest.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	g, err := consoletest.New(f, consoletest.Linux())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	g.Patience = patience
	if err := g.Bind(); err != nil {
		t.Fatal(err)
	}
	return g
}

// port waits for a port of the guest's, by its id, and whatever else must hold of it.
func port(t *testing.T, g *consoletest.Guest, id uint32, more func(*consoletest.Port) bool) *consoletest.Port {
	t.Helper()
	if err := g.Wait(fmt.Sprint("port ", id), func() bool { p := g.Port(id); return p != nil && more(p) }); err != nil {
		t.Fatal(err)
	}
	return g.Port(id)
}

// person is a terminal with a program.
type person struct {
	t      *testing.T
	tty    *os.File // the program's side
	master *os.File
	shown  *transcript
	cmd    *exec.Cmd
	before *term.State
	ended  chan error
}

// sits starts vdev with these arguments in a terminal of that size.
func sits(t *testing.T, cols, rows uint16, args ...string) *person {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	p := &person{t: t, tty: tty, master: master, shown: &transcript{more: make(chan struct{})}, ended: make(chan error, 1)}
	p.resize(cols, rows)
	if p.before, err = term.GetState(int(tty.Fd())); err != nil {
		t.Fatal(err)
	}
	// It is the terminal of its own session, as a shell's program has it.
	p.cmd = exec.Command("setsid", append([]string{"--ctty", "vdev"}, args...)...)
	p.cmd.Env = append(os.Environ(), noRaceSleep)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = tty, tty, tty
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(p.shown, master) // until it is closed
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		tty.Close()
		master.Close()
		<-read
		if text, _ := p.shown.read(); t.Failed() {
			t.Logf("the terminal of %q shows at the end:\n%q", args, text[max(0, len(text)-1000):])
		}
	})
	return p
}

func (p *person) resize(cols, rows uint16) {
	p.t.Helper()
	if err := pty.Setsize(p.master, &pty.Winsize{Cols: cols, Rows: rows}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) types(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.master, text); err != nil {
		p.t.Fatal(err)
	}
}

// sees waits until the terminal shows text, and returns all that it shows.
func (p *person) sees(text string) string {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		shown, more := p.shown.read()
		if strings.Contains(shown, text) {
			return shown
		}
		select {
		case <-more:
		case <-timeout:
			p.t.Fatalf("the terminal does not show %q, but at its end %q", text, shown[max(0, len(shown)-200):])
		}
	}
}

// leaves waits for the program's end, which must leave the terminal as it was.
func (p *person) leaves() error {
	p.t.Helper()
	var err error
	select {
	case err = <-p.ended:
	case <-time.After(patience):
		p.t.Fatal("the program does not end")
	}
	after, gerr := term.GetState(int(p.tty.Fd()))
	if gerr != nil {
		p.t.Fatal(gerr)
	}
	if !reflect.DeepEqual(after, p.before) {
		p.t.Errorf("the terminal's settings are %+v, and were %+v", after, p.before)
	}
	return err
}

// words is a text without its columns.
func words(text string) string { return strings.Join(strings.Fields(text), " ") + " " }

const escape = "\x1d"

func TestAPersonAttachesToAConsole(t *testing.T) {
	socket, ctl := sockets(t)
	p := serving(t, nil, "console", "--socket-path", socket, "--control", ctl, "--port", "driver=null")
	g := consoleGuest(t, socket)
	tty := port(t, g, 0, func(*consoletest.Port) bool { return true })
	if err := tty.Open(); err != nil {
		t.Fatal(err)
	}
	var boot strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&boot, "boot message %d\r\n", i)
	}
	if _, err := io.WriteString(tty, boot.String()); err != nil {
		t.Fatal(err)
	}
	p.until(ctl, func(st control.Status) bool { return st.Console.Ports[0].Output == int64(boot.Len()) })

	one := sits(t, 100, 40, "ctl", "--socket", ctl, "console")
	if shown := one.sees("boot message 1999\r\n"); shown != boot.String() {
		t.Errorf("of the %d bytes that were kept %d are shown, or in another order", boot.Len(), len(shown))
	}
	if err := g.Wait("the size", func() bool { return g.Cols == 100 && g.Rows == 40 }); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(tty, "login: "); err != nil {
		t.Fatal(err)
	}
	one.sees("login: ")
	one.types("r\x03\x1a")
	got := make([]byte, 3)
	if _, err := io.ReadFull(tty, got); err != nil || string(got) != "r\x03\x1a" {
		t.Errorf("the guest reads %q, %v", got, err)
	}
	// Another one sees the same, types too, and decides on the size.
	two := sits(t, 131, 47, "ctl", "--socket", ctl, "console", "0")
	two.sees("login: ")
	if err := g.Wait("another size", func() bool { return g.Cols == 131 && g.Rows == 47 }); err != nil {
		t.Error(err)
	}
	two.types("o")
	if _, err := io.ReadFull(tty, got[:1]); err != nil || got[0] != 'o' {
		t.Errorf("the guest reads %q, %v", got[:1], err)
	}
	two.resize(90, 30)
	if err := g.Wait("the new size", func() bool { return g.Cols == 90 && g.Rows == 30 }); err != nil {
		t.Error(err)
	}
	looks := sits(t, 70, 20, "ctl", "--socket", ctl, "console", "--watch")
	looks.sees("login: ")
	looks.types("x")
	text := words(p.told(ctl, "status"))
	for _, want := range []string{"one port, 2 queues (num_vqs)", " 0 null open - 90x30 ", " ctl 90x30 ", " watches ", "nothing of a console is in flight", "character 400,0 tty, 1 open "} {
		if !strings.Contains(text, want) {
			t.Errorf("the status has no %q:\n%s", want, text)
		}
	}
	looks.types(escape)
	two.types(escape)
	for _, who := range []*person{looks, two} {
		if err := who.leaves(); err != nil {
			t.Errorf("after the escape: %v", err)
		}
	}
	p.until(ctl, func(st control.Status) bool { return len(st.Console.Ports[0].Ends) == 2 })
	one.types("t")
	if _, err := io.ReadFull(tty, got[:1]); err != nil || got[0] != 't' {
		t.Errorf("the guest reads %q, %v; nothing else was typed", got[:1], err)
	}
	if one.cmd.Process.Kill() != nil {
		t.Fatal("no process")
	}
	p.until(ctl, func(st control.Status) bool { return len(st.Console.Ports[0].Ends) == 1 })
	last := sits(t, 80, 24, "ctl", "--socket", ctl, "console")
	last.sees("login: ")
	p.endsCleanly()
	if err := last.leaves(); err == nil {
		t.Error("whoever was attached ends as if nothing had been")
	}
	last.sees("vdev: detached: vdev ends")
}

func TestPortsComeAndGoWhileTheGuestRuns(t *testing.T) {
	socket, ctl := sockets(t)
	p := serving(t, nil, "console", "--socket-path", socket, "--control", ctl, "--max-ports", "3", "--port", "driver=null")
	p.waitFor("num_vqs=8")
	g := consoleGuest(t, socket)
	port(t, g, 0, func(p *consoletest.Port) bool { return p.Console })
	if got := p.told(ctl, "port", "add", "name=org.vdev.test,driver=loop"); got != "1\n" {
		t.Errorf("the port is %q", got)
	}
	data := port(t, g, 1, func(p *consoletest.Port) bool { return p.Name == "org.vdev.test" && p.HostOpen })
	if err := data.Open(); err != nil {
		t.Fatal(err)
	}
	const text = "what is written comes back"
	if _, err := io.WriteString(data, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(data, got); err != nil || string(got) != text {
		t.Errorf("%q comes back, %v", got, err)
	}
	list := words(p.told(ctl, "port", "list"))
	for _, want := range []string{"port driver state guest size output input ", " 1 org.vdev.test loop open open - 26 26 "} {
		if !strings.Contains(list, want) {
			t.Errorf("the list has no %q:\n%s", want, list)
		}
	}
	for says, text := range map[string]string{
		"there are two ports with the name org.vdev.test":       "name=org.vdev.test,driver=null",
		"there are two ports with the id 0":                     "id=0,driver=null",
		"id=3: must be less than 3 (--max-ports)":               "id=3,driver=null",
		"the path x must be absolute: vdev may run in another":  "driver=pty,path=x",
		"the path y must be absolute":                           "driver=null,log=y",
		"driver=stdio: vdev has its terminal from its start on": "driver=stdio",
	} {
		p.refused(ctl, says, "port", "add", text)
	}
	// What cannot be opened has had its place for nothing.
	p.refused(ctl, "is no link to a pseudo-terminal", "port", "add", "driver=pty,path="+filepath.Dir(socket))
	if got := p.told(ctl, "port", "add", "driver=null,size=100x40"); got != "2\n" {
		t.Errorf("the port is %q", got)
	}
	port(t, g, 2, func(p *consoletest.Port) bool { return p.Console && p.Cols == 100 && p.Rows == 40 })
	p.refused(ctl, "there is room for 3 ports (--max-ports), and there are as many", "port", "add", "driver=null")
	p.refused(ctl, "there are 3 ports, and one has to be named: 0, org.vdev.test, 2", "console")

	who := sits(t, 80, 24, "ctl", "--socket", ctl, "console", "org.vdev.test")
	p.until(ctl, func(st control.Status) bool { return len(st.Console.Ports[1].Ends) == 2 })
	p.told(ctl, "port", "remove", "org.vdev.test")
	who.sees("vdev: detached: the port was removed")
	if err := who.leaves(); err == nil {
		t.Error("whoever was attached ends as if nothing had been")
	}
	if err := g.Wait("the port's end", data.Removed); err != nil {
		t.Error(err)
	}
	p.refused(ctl, `there is no port "org.vdev.test"; there are: 0, 2`, "port", "remove", "org.vdev.test")
	trace := p.told(ctl, "trace")
	for _, want := range []string{" ctl port remove org.vdev.test\n", " cancel\n", " drain\n", " close\n", " closed\n"} {
		_, after, found := strings.Cut(trace, want)
		if !found {
			t.Fatalf("the trace has no %q, or not in this order:\n%s", want, p.told(ctl, "trace"))
		}
		trace = after
	}
	// The number is free again, and the guest takes it for another port.
	if got := p.told(ctl, "port", "add", "name=again,driver=loop"); got != "1\n" {
		t.Errorf("the port is %q", got)
	}
	port(t, g, 1, func(p *consoletest.Port) bool { return p.Name == "again" })
	p.endsCleanly()
}

func TestConsolesAreServedBesideADisk(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	text := fmt.Sprintf(`
control = %q

[[device]]
name = "root"
socket-path = %q
blk-file = %q

[[device]]
type = "console"
name = "tty"
socket-path = %q
port = "driver=loop,size=100x40"

[[device]]
type = "console"
socket-path = %q
max-ports = 2
resize-order = "rows-first"
port = ["driver=null,size=100x40", "name=agent,driver=loop"]
`, in("ctl"), in("a.sock"), image(t, 8), in("b.sock"), in("ports.sock"))
	if err := os.WriteFile(in("vdev.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := servingAll(t, 3, "serve", in("vdev.toml"))
	disk := connect(t, in("a.sock"))
	disk.start()
	tty, ports := consoleGuest(t, in("b.sock")), consoleGuest(t, in("ports.sock"))
	if err := tty.Wait("a size", func() bool { return tty.Cols == 100 && tty.Rows == 40 }); err != nil {
		t.Error(err)
	}
	// As an older guest reads it, the other way round.
	port(t, ports, 0, func(p *consoletest.Port) bool { return p.Cols == 40 && p.Rows == 100 })
	port(t, ports, 1, func(p *consoletest.Port) bool { return p.Name == "agent" })

	var all []control.Status
	if err := json.Unmarshal([]byte(p.told(in("ctl"), "status", "--json")), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 || all[0].Disk == nil || all[0].Console != nil || all[1].Disk != nil || all[1].Console == nil {
		t.Fatalf("the status is %+v", all)
	}
	if c := all[2].Console; all[2].Name != "ports" || c.Queues != 6 || c.MaxPorts != 2 || !c.Multiport || c.ResizeOrder != "rows-first" ||
		len(c.Ports) != 2 || c.Ports[0].Told != (control.Window{Columns: 100, Rows: 40}) || c.Ports[1].Name != "agent" || c.Ports[1].Overflow != "wait" ||
		!c.Ports[1].GuestReady || all[2].State != "open" || len(all[2].Rings) != 6 {
		t.Errorf("the status of the console is %+v, %+v", all[2], c)
	}
	if !strings.Contains(strings.Join(all[2].FrontEnd.Features.Names, " "), "MULTIPORT") {
		t.Errorf("the features are %v", all[2].FrontEnd.Features)
	}
	shown := p.told(in("ctl"), "status")
	for _, want := range []string{"device      ports\n", "console     2 ports of 2, 6 queues (num_vqs), sizes are told rows-first\n"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the status has no %q:\n%s", want, shown)
		}
	}
	p.refused(in("ctl"), "the device is none that can be asked for ports", "port", "list", "--device", "root")
	p.refused(in("ctl"), "the device is none that can be asked for resize", "resize", "--device", "tty")
	p.refused(in("ctl"), "--multiport=on", "port", "add", "driver=null", "--device", "tty")
	p.refused(in("ctl"), "the only port stays", "port", "remove", "0", "--device", "tty")

	p.told(in("ctl"), "revoke", "--device", "ports")
	if st := p.status2(in("ctl"), "ports"); st.State != "revoked" || len(st.Devices) != 0 {
		t.Errorf("after the revoke the console is %s: %+v", st.State, st.Devices)
	}
	disk.holds(3)
	if err := tty.Port(0).Open(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tty.Port(0), "x"); err != nil {
		t.Fatal(err)
	}
	if got := make([]byte, 1); true {
		if _, err := io.ReadFull(tty.Port(0), got); err != nil || got[0] != 'x' {
			t.Errorf("the other console gives %q, %v", got, err)
		}
	}
	p.endsCleanly()
}

// status2 asks for the status of one of several devices.
func (p *process) status2(socket, device string) (st control.Status) {
	p.t.Helper()
	if err := json.Unmarshal([]byte(p.told(socket, "status", "--device", device, "--json")), &st); err != nil {
		p.t.Fatal(err)
	}
	return st
}

func TestTheTerminalThatVdevIsStartedInIsTheConsole(t *testing.T) {
	for name, leave := range map[string]func(*person){
		"the escape": func(p *person) { p.types(escape) },
		"SIGTERM":    func(p *person) { _ = p.cmd.Process.Signal(syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			socket, _ := sockets(t)
			p := sits(t, 100, 40, "console", "--socket-path", socket)
			p.sees("serving a console")
			g := consoleGuest(t, socket)
			if err := g.Wait("the size", func() bool { return g.Cols == 100 && g.Rows == 40 }); err != nil {
				t.Error(err)
			}
			tty := g.Port(0)
			if err := tty.Open(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(tty, "login: "); err != nil {
				t.Fatal(err)
			}
			shown := p.sees("login: ")
			if strings.Count(shown, "\n") != strings.Count(shown, "\r\n") {
				t.Errorf("the log goes down the stairs: %q", shown)
			}
			p.types("\x03")
			got := make([]byte, 1)
			if _, err := io.ReadFull(tty, got); err != nil || got[0] != 3 {
				t.Errorf("the guest reads %q, %v", got, err)
			}
			leave(p)
			if err := p.leaves(); err != nil {
				t.Errorf("it ends with %v", err)
			}
		})
	}
}

func TestAConsoleOnPipesHasNothingElseOnThem(t *testing.T) {
	socket, _ := sockets(t)
	cmd := exec.Command("vdev", "console", "--socket-path", socket, "--port", "driver=stdio")
	cmd.Env = append(os.Environ(), noRaceSleep)
	out := &transcript{more: make(chan struct{})}
	cmd.Stdin, cmd.Stdout = strings.NewReader("who\n"), out
	p := startCommand(t, cmd)
	p.waitFor("serving a console")
	g := consoleGuest(t, socket)
	tty := g.Port(0)
	if err := tty.Open(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(tty, got); err != nil || string(got) != "who\n" {
		t.Errorf("the guest reads %q, %v", got, err)
	}
	if _, err := io.WriteString(tty, "root tty1\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := tty.Flush(); err != nil {
		t.Fatal(err)
	}
	p.endsCleanly()
	if text, _ := out.read(); text != "root tty1\r\n" {
		t.Errorf("stdout has %q", text)
	}
}

func TestAPortHasATerminalOrASocketAndALog(t *testing.T) {
	socket, ctl := sockets(t)
	in := func(name string) string { return filepath.Join(filepath.Dir(socket), name) }
	args := []string{"console", "--socket-path", socket, "--control", ctl, "--port", "driver=pty,path=" + in("tty") + ",log=" + in("log"),
		"--port", "name=agent,driver=socket,path=" + in("agent")}
	p := serving(t, nil, args...)
	g := consoleGuest(t, socket)
	tty := port(t, g, 0, func(p *consoletest.Port) bool { return p.Console })
	if err := tty.Open(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tty, "one\r\n"); err != nil {
		t.Fatal(err)
	}
	p.until(ctl, func(control.Status) bool { return holds(in("log"), "one\r\n") })
	if err := os.Rename(in("log"), in("log.old")); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP)
	p.until(ctl, func(control.Status) bool { return exists(t, in("log")) })
	if _, err := io.WriteString(tty, "two\r\n"); err != nil {
		t.Fatal(err)
	}
	p.until(ctl, func(control.Status) bool { return holds(in("log"), "two\r\n") })

	host, err := os.OpenFile(in("tty"), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	b := make([]byte, len("one\r\ntwo\r\n"))
	if _, err := io.ReadFull(host, b); err != nil || string(b) != "one\r\ntwo\r\n" {
		t.Errorf("the terminal shows %q, %v", b, err)
	}
	if _, err := io.WriteString(host, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(tty, b[:1]); err != nil || b[0] != 'x' {
		t.Errorf("the guest reads %q, %v", b[:1], err)
	}

	agent := port(t, g, 1, func(p *consoletest.Port) bool { return p.Name == "agent" && !p.HostOpen })
	client, err := net.Dial("unix", in("agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	port(t, g, 1, func(p *consoletest.Port) bool { return p.HostOpen })
	if err := agent.Open(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(client, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(agent, b[:4]); err != nil || string(b[:4]) != "ping" {
		t.Errorf("the guest's agent reads %q, %v", b[:4], err)
	}
	if _, err := io.WriteString(agent, "pong"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, b[:4]); err != nil || string(b[:4]) != "pong" {
		t.Errorf("the client reads %q, %v", b[:4], err)
	}
	// Another vdev cannot have the same, and says so.
	for _, arg := range []string{"driver=socket,path=" + in("agent"), "driver=pty,path=" + in("tty")} {
		other := start(t, nil, "console", "--socket-path", in("other"), "--port", arg)
		if status := other.wait(); status != exitFailure {
			t.Errorf("%s: a second vdev ends with status %d", arg, status)
		}
		if text, _ := other.stderr.read(); !strings.Contains(text, "port 0: ") || strings.Count(text, "vdev: ") != 1 {
			t.Errorf("%s: it says %q", arg, text)
		}
	}
	p.endsCleanly()
	for _, name := range []string{"tty", "agent"} {
		if _, err := os.Lstat(in(name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

// holds tells whether a file has this text.
func holds(name, text string) bool {
	b, err := os.ReadFile(name)
	return err == nil && string(b) == text
}

func TestFaultsActOnConsoles(t *testing.T) {
	socket, ctl := sockets(t)
	p := serving(t, nil, "console", "--socket-path", socket, "--control", ctl, "--port", "driver=null",
		"--port", "name=data,driver=fault,rule=hang:write:count=1,lower=loop")
	g := consoleGuest(t, socket)
	data := port(t, g, 1, func(p *consoletest.Port) bool { return p.HostOpen })
	if err := data.Open(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(data, "hello"); err != nil {
		t.Fatal(err)
	}
	st := p.until(ctl, func(st control.Status) bool { return len(st.Faults.Held) == 1 })
	if h := st.Faults.Held[0]; h.Op != "write" || h.Bytes != 5 || !h.Hangs || st.Console.Ports[1].Driver != "fault on loop" {
		t.Errorf("what hangs is %+v, %+v", h, st.Console.Ports[1])
	}
	// The console beside it goes on, and a stop of the device does not wait for what hangs.
	if _, err := io.WriteString(g.Port(0), "on"); err != nil {
		t.Fatal(err)
	}
	if err := g.Port(0).Flush(); err != nil {
		t.Error(err)
	}
	if err := g.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := g.Resume(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(data, b); err != nil || string(b) != "hello" {
		t.Errorf("after the pause %q comes back, %v", b, err)
	}
	if got := p.told(ctl, "fault", "hang:read"); got != "2 hang:read\n" {
		t.Errorf("the rule is %q", got)
	}
	if _, err := io.WriteString(data, "again"); err != nil {
		t.Fatal(err)
	}
	p.until(ctl, func(st control.Status) bool { return len(st.Faults.Held) == 1 && st.Faults.Held[0].Op == "read" })
	p.told(ctl, "fault", "clear")
	p.told(ctl, "fault", "release")
	if _, err := io.ReadFull(data, b); err != nil || string(b) != "again" {
		t.Errorf("after the release %q comes back, %v", b, err)
	}
	p.refused(ctl, "a port of a console has the operations read, write, open, close and cancel", "fault", "hang:flush")
	p.refused(ctl, "a console has no cache", "fault", "crash")
	p.endsCleanly()

	p = serving(t, nil, "console", "--socket-path", socket, "--control", ctl, "--port", "driver=null")
	p.refused(ctl, "the console has no faults: no port was given driver=fault", "fault")
	p.endsCleanly()
}
