package guesttests

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vdev/guest-tests/internal/pattern"
	"vdev/guest-tests/internal/vm"
)

// commands are what scripts can say beside testscript's own; testdata/script/README.md describes
// them.
var commands map[string]func(*testscript.TestScript, bool, []string)

func init() {
	commands = map[string]func(*testscript.TestScript, bool, []string){
		"backend":  plain(startServer),
		"backends": plain(startSeveral),
		"serve":    plain(startOther),
		"end":      plain(func(w *world, args []string) (string, error) { return "", w.eachBackend(args, (*backend).stop) }),
		"crash": plain(func(w *world, args []string) (string, error) {
			return "", w.eachBackend(args, func(b *backend) error { b.kill(); return nil })
		}),
		"signal":        plain(sendSignal),
		"expect-log":    expectLog,
		"qemu":          plain(startQEMU),
		"guest":         guestCommand,
		"reboot":        plain(func(w *world, _ []string) (string, error) { return w.restart(guestReboot) }),
		"system_reset":  plain(systemReset),
		"poweroff":      plain(powerOff),
		"quit":          plain(quit),
		"crash-qemu":    plain(func(w *world, _ []string) (string, error) { w.machine.Kill(); return "", nil }),
		"console":       plain(awaitConsole),
		"qmp":           plain(qmpCommand),
		"monitor":       plain(monitorCommand),
		"device_del":    plain(deviceDel),
		"device_add":    plain(deviceAdd),
		"pattern":       plain(hostPattern),
		"boot-sector":   plain(writeBootSector),
		"netbsd-root":   plain(netbsdRoot),
		"build-rng":     plain(func(*world, []string) (string, error) { _, err := built.rng(); return "", err }),
		"nothing-runs":  plain(nothingRuns),
		"build-ramdisk": plain(func(*world, []string) (string, error) { _, err := built.ramdisk(); return "", err }),
		"repeat":        repeat,
		"limit":         plain(setLimit),
		"watch":         plain(watch),
		"watched":       watched,
		"busy":          plain(busy),
		"idle":          plain(idle),
		"ctl":           plain(control),
		"pause":         plain(pause),
		"terminal":      plain(useTerminal),
		"deaf":          deaf,
		"deafness":      deafness,
		"restart":       plain(restartBackend),
		"mutant":        mutantCommand,
		"life":          plain(life),
		"migrate":       plain(migrate),
		"hangfs":        plain(mountHanging),
		"lossy":         plain(makeLossy),
		"hold":          plain(hold),
		"held":          plain(held),
		"release":       plain(letGo),
		"record":        plain(startRecord),
		"recorded":      recorded,
		"line":          plain(changeLine),
		"hang":          plain(hang),
		"go-on":         plain(func(w *world, args []string) (string, error) { return "", w.goOn(args) }),

		"image-servers": plain(imageServers),
	}
}

// plain makes a script's command of a function that cannot be negated: its text is the command's
// output.
func plain(f func(*world, []string) (string, error)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		defer timed(ts)()
		text, err := f(worldOf(ts), args)
		show(ts, text)
		switch {
		case neg && err != nil:
			fmt.Fprintln(ts.Stderr(), err)
		case neg:
			ts.Fatalf("it should have failed")
		default:
			ts.Check(err)
		}
	}
}

// timed tells how long a step took, where somebody may have wondered.
func timed(ts *testscript.TestScript) func() {
	begin := time.Now()
	return func() {
		if d := time.Since(begin); d > time.Second {
			ts.Logf("(%.1f s)", d.Seconds())
		}
	}
}

// show makes text the output of the command that runs.
func show(ts *testscript.TestScript, text string) {
	if text = strings.TrimRight(text, "\n"); text != "" {
		text += "\n"
	}
	io.WriteString(ts.Stdout(), text)
}

// setLimit is "limit DURATION": how long each step may take from here on.
func setLimit(w *world, args []string) (_ string, err error) {
	if len(args) != 1 {
		return "", errors.New("usage: limit DURATION")
	}
	w.limit, err = time.ParseDuration(args[0])
	return "", err
}

func (w *world) eachBackend(names []string, f func(*backend) error) error {
	if len(names) == 0 {
		return errors.New("which back-end?")
	}
	for _, name := range names {
		b, err := w.backend(name)
		if err != nil {
			return err
		}
		if err := f(b); err != nil {
			return err
		}
	}
	return nil
}

// sendSignal is "signal NAME HUP|USR1|STOP|CONT".
func sendSignal(w *world, args []string) (string, error) {
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "USR1": syscall.SIGUSR1,
		"STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}
	if len(args) != 2 || signals[args[1]] == 0 {
		return "", errors.New("usage: signal NAME HUP|USR1|STOP|CONT")
	}
	return "", w.eachBackend(args[:1], func(b *backend) error { return b.cmd.Process.Signal(signals[args[1]]) })
}

// startServer is "backend [-tmpfs SIZE] [-fd] NAME ARG...".
func startServer(w *world, args []string) (string, error) {
	flags := flag.NewFlagSet("backend", flag.ContinueOnError)
	small := flags.String("tmpfs", "", "")
	inherited := flags.Bool("fd", false, "")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	if flags.NArg() < 2 {
		return "", errors.New("usage: backend [-tmpfs SIZE] [-fd] NAME blk|console ARG...")
	}
	make := theServer(w)
	if *small != "" {
		make = onTmpfs(make, *small)
	}
	if *inherited {
		make = onDescriptor(make)
	}
	err := w.addBackend(flags.Arg(0), make, flags.Args()[1:])
	if err == nil {
		w.backends[flags.Arg(0)].console = flags.Arg(1) == "console"
	}
	return "", err
}

// onTmpfs has a back-end see a small file system of its own at the folder "small", with a sparse
// file "disk.img" of 64 MiB in it that cannot be filled. The file system ends with the process.
func onTmpfs(inner server, size string) server {
	return func(socket string, args []string) (*exec.Cmd, error) {
		cmd, err := inner(socket, args)
		if err != nil {
			return nil, err
		}
		const script = `mkdir -p small && mount -t tmpfs -o size="$0" none small && truncate -s 64M small/disk.img && exec "$@"`
		outer := exec.Command("unshare", append([]string{"--mount", "--map-root-user", "sh", "-c", script, size, cmd.Path}, cmd.Args[1:]...)...)
		outer.Env = cmd.Env
		return outer, nil
	}
}

// onDescriptor has a back-end inherit the listening socket as descriptor 3.
func onDescriptor(inner server) server {
	return func(socket string, args []string) (*exec.Cmd, error) {
		cmd, err := inner(socket, args)
		if err != nil {
			return nil, err
		}
		i := slices.Index(cmd.Args, "--socket-path")
		cmd.Args[i], cmd.Args[i+1] = "--fd", "3"
		l, err := net.Listen("unix", socket)
		if err != nil {
			return nil, err
		}
		// The socket's file outlives this listener: the back-end's is another.
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		f, err := l.(*net.UnixListener).File()
		cmd.ExtraFiles = []*os.File{f}
		return cmd, errors.Join(err, l.Close())
	}
}

// startOther is "serve NAME PROGRAM ARG...": a back-end that is not vdev; @SOCKET stands for its
// socket.
func startOther(w *world, args []string) (string, error) {
	if len(args) < 2 {
		return "", errors.New("usage: serve NAME PROGRAM ARG...")
	}
	defer func() {
		// What stands beside the test may end as it likes.
		if b := w.backends[args[0]]; b != nil {
			b.beside = besides[args[1]]
			b.foreign = b.foreign || b.beside
		}
	}()
	return "", w.addBackend(args[0], func(socket string, args []string) (*exec.Cmd, error) {
		program, err := w.lookPath(args[0])
		for i, a := range args {
			args[i] = strings.ReplaceAll(a, "@SOCKET", socket)
		}
		return exec.Command(program, args[1:]...), err
	}, args[1:])
}

// besides are the programs that stand beside a test.
var besides = map[string]bool{"qemu-storage-daemon": true, "qemu-nbd": true, "nbdkit": true}

// expectLog is "expect-log NAME REGEXP", which waits, or its negation, which does not.
func expectLog(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: expect-log NAME REGEXP")
	}
	w := worldOf(ts)
	b, err := w.backend(args[0])
	ts.Check(err)
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	if neg {
		text, err := os.ReadFile(b.log)
		ts.Check(err)
		if found := re.Find(text); found != nil {
			ts.Fatalf("%s has %q", filepath.Base(b.log), found)
		}
		return
	}
	ctx, cancel := w.context()
	defer cancel()
	ts.Check(b.awaitLog(ctx, re))
}

// startQEMU is "qemu [-version V] [-smp N] [-memory MIB] [-transport T] [-queues N] [-options
// K=V,...] [-boot] [-firmware | -netbsd] [-append WORDS] [-agent serial] [-arg OPTION]...
// NAME...": a machine whose disks and consoles are the back-ends of those names.
func startQEMU(w *world, args []string) (string, error) {
	flags := flag.NewFlagSet("qemu", flag.ContinueOnError)
	version := flags.String("version", "11.1", "")
	cpus := flags.Int("smp", 1, "")
	memory := flags.Int("memory", 0, "")
	transport := flags.String("transport", string(vm.Modern), "")
	queues := flags.Int("queues", 1, "")
	options := flags.String("options", "", "")
	boot := flags.Bool("boot", false, "")
	firmware := flags.Bool("firmware", false, "")
	netbsd := flags.Bool("netbsd", false, "")
	reconnect := flags.Bool("reconnect", false, "")
	words := flags.String("append", "", "")
	agent := flags.String("agent", os.Getenv(agentEnv), "")
	var more []string
	flags.Func("arg", "", func(s string) error { more = append(more, strings.Fields(s)...); return nil })
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	q, err := vm.FindQEMU(*version)
	if err != nil {
		return "", err
	}
	c := vm.Config{QEMU: q, CPUs: *cpus, Memory: *memory, Args: more, DiskCode: *boot || *netbsd}
	ctx, cancel := w.context()
	defer cancel()
	for i, name := range flags.Args() {
		b, err := w.backend(name)
		if err != nil {
			return "", err
		}
		d := vm.Device{Name: name, Socket: w.socketFor(b, name), Transport: vm.Port}
		if d.Rings, err = b.rings(ctx); err != nil {
			return "", err
		}
		if d.Rings == 0 {
			d.Transport, d.Queues, d.Boot, d.Reconnect, d.Options = vm.Transport(*transport), *queues, *boot && i == 0, *reconnect, *options
		}
		c.Devices = append(c.Devices, d)
	}
	switch {
	case *firmware:
	case *netbsd:
		if c.Kernel, err = filepath.Abs(os.Getenv(kernelEnv)); err != nil {
			return "", err
		}
		c.Append = vm.NetBSDAppend
	default:
		linux, err := vm.LinuxDir()
		if err != nil {
			return "", err
		}
		c.Kernel = filepath.Join(linux, "vmlinuz")
		c.Append = vm.LinuxAppend + " " + *words
		if c.Initrd, err = built.initramfs(); err != nil {
			return "", err
		}
		if *agent != "serial" && q.AtLeast(10, 2) {
			if err := w.addAgent(ctx, &c); err != nil {
				return "", err
			}
		}
	}
	if err := w.start(c); err != nil || *firmware {
		return "", err
	}
	text, err := w.machine.AwaitBoot(ctx)
	if err == nil && *netbsd {
		used.netbsd.Add(1)
	}
	return text, err
}

// guestCommand is "guest COMMAND ARG..." for the agent; negated, the agent must report an error.
func guestCommand(ts *testscript.TestScript, neg bool, args []string) {
	defer timed(ts)()
	text, err := worldOf(ts).guest(strings.Join(args, " "))
	if args[0] == "finish" && err == nil {
		figure(ts, text)
	}
	var fault *vm.GuestError
	switch {
	case neg && errors.As(err, &fault):
		fmt.Fprintln(ts.Stderr(), fault.Text)
	case neg && err == nil:
		ts.Fatalf("the guest's command should have failed: %s", text)
	default:
		show(ts, text)
		ts.Check(err)
	}
}

func guestReboot(ctx context.Context, m *vm.Machine) error {
	_, err := m.Guest(ctx, "reboot")
	return err
}

// systemReset is "system_reset [-release NAME]": with -release the disk, whose server is recorded,
// hangs, and is let go when its rings have stopped, so that the guest can boot.
func systemReset(w *world, args []string) (string, error) {
	flags := flag.NewFlagSet("system_reset", flag.ContinueOnError)
	release := flags.String("release", "", "")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	return w.restart(func(ctx context.Context, m *vm.Machine) error {
		if *release == "" {
			_, err := m.Do(ctx, "system_reset", nil)
			return err
		}
		r, err := w.record(w.storage[*release])
		if err != nil {
			return err
		}
		before := r.Report().Quiets
		if _, err := m.Do(ctx, "system_reset", nil); err != nil {
			return err
		}
		if err := r.awaitQuiet(ctx, before); err != nil {
			return err
		}
		return w.goOn([]string{*release})
	})
}

// powerOff has the guest do it, and QEMU end with it.
func powerOff(w *world, _ []string) (string, error) {
	if _, err := w.guest("poweroff"); err != nil {
		return "", err
	}
	return "", w.awaitEnd()
}

// quit has QEMU end without asking the guest.
func quit(w *world, _ []string) (string, error) {
	m, err := w.running()
	if err != nil {
		return "", err
	}
	ctx, cancel := w.context()
	defer cancel()
	if _, err := m.Do(ctx, "quit", nil); err != nil && !errors.Is(err, vm.ErrExited) {
		return "", err
	}
	return "", w.awaitEnd()
}

func (w *world) awaitEnd() error {
	ctx, cancel := w.context()
	defer cancel()
	return w.machine.Wait(ctx)
}

// awaitConsole is "console REGEXP": the machine's serial port has said that, or says it soon.
func awaitConsole(w *world, args []string) (string, error) {
	m, err := w.running()
	if err != nil {
		return "", err
	}
	re, err := regexp.Compile("(?m)" + strings.Join(args, " "))
	if err != nil {
		return "", err
	}
	ctx, cancel := w.context()
	defer cancel()
	return "", m.Console.AwaitText(ctx, re)
}

func qmpCommand(w *world, args []string) (string, error) {
	m, err := w.running()
	if err != nil {
		return "", err
	}
	ctx, cancel := w.context()
	defer cancel()
	raw, err := m.Run(ctx, strings.Join(args, " "))
	var b bytes.Buffer
	if err == nil {
		err = json.Indent(&b, raw, "", "  ")
	}
	return b.String(), err
}

func monitorCommand(w *world, args []string) (string, error) {
	m, err := w.running()
	if err != nil {
		return "", err
	}
	ctx, cancel := w.context()
	defer cancel()
	return m.Monitor(ctx, strings.Join(args, " "))
}

// deviceDel is "device_del [-signal SIGNAL] NAME": the guest gives the device up, and QEMU says
// that it is gone. Meanwhile its back-end is sent a signal.
func deviceDel(w *world, args []string) (string, error) {
	flags := flag.NewFlagSet("device_del", flag.ContinueOnError)
	signal := flags.String("signal", "", "")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	m, d, err := w.device(flags.Args())
	if err != nil {
		return "", err
	}
	ctx, cancel := w.context()
	defer cancel()
	before := m.Events()
	if _, err := m.Do(ctx, "device_del", map[string]any{"id": d.Name}); err != nil {
		return "", err
	}
	if *signal != "" {
		if _, err := sendSignal(w, []string{d.Name, *signal}); err != nil {
			return "", err
		}
	}
	return "", m.AwaitEvent(ctx, before, "DEVICE_DELETED", func(data map[string]any) bool { return data["device"] == d.Name })
}

// deviceAdd is "device_add NAME": the device that device_del removed comes back on the same
// chardev.
func deviceAdd(w *world, args []string) (string, error) {
	m, d, err := w.device(args)
	if err != nil {
		return "", err
	}
	ctx, cancel := w.context()
	defer cancel()
	text, err := m.Monitor(ctx, "device_add "+d.Properties())
	if err == nil && strings.TrimSpace(text) != "" {
		err = errors.New(strings.TrimSpace(text))
	}
	return "", err
}

func (w *world) device(args []string) (*vm.Machine, vm.Device, error) {
	m, err := w.running()
	if err != nil {
		return nil, vm.Device{}, err
	}
	if len(args) != 1 || w.devices[args[0]].Name == "" {
		return nil, vm.Device{}, fmt.Errorf("which device? not %q", args)
	}
	return m, w.devices[args[0]], nil
}

// hostPattern is "pattern write|verify FILE [seed=N] [off=BYTES] [size=BYTES]": what the agent's
// commands of those names do, on a file of the host.
func hostPattern(w *world, args []string) (text string, err error) {
	const usage = "usage: pattern write|verify FILE [seed=N] [off=BYTES] [size=BYTES]"
	if len(args) < 2 || args[0] != "write" && args[0] != "verify" {
		return "", errors.New(usage)
	}
	opts := map[string]int64{"seed": 1, "off": 0, "size": -1}
	for _, a := range args[2:] {
		key, value, _ := strings.Cut(a, "=")
		if _, ok := opts[key]; !ok {
			return "", errors.New(usage)
		}
		if opts[key], err = bytesOf(value); err != nil {
			return "", err
		}
	}
	f, err := os.OpenFile(filepath.Join(w.dir, args[1]), os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	off, end := opts["off"], opts["off"]+opts["size"]
	if opts["size"] < 0 {
		if end, err = f.Seek(0, io.SeekEnd); err != nil {
			return "", err
		}
	}
	buf := make([]byte, 1<<20)
	for at := off; at < end; at += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), end-at)]
		if args[0] == "write" {
			pattern.Fill(p, uint64(opts["seed"]), at)
			if _, err := f.WriteAt(p, at); err != nil {
				return "", err
			}
			continue
		}
		if _, err := f.ReadAt(p, at); err != nil {
			return "", err
		}
		if err := pattern.Verify(p, uint64(opts["seed"]), at); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d bytes", end-off), nil
}

// bytesOf reads a number with k, M or G behind it.
func bytesOf(s string) (int64, error) {
	shift := 0
	for i, unit := range []string{"k", "M", "G"} {
		if rest, ok := strings.CutSuffix(s, unit); ok {
			s, shift = rest, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n << shift, err
}

// repeat is "repeat N FILE": the lines of the file, commands of this package all of them, N times.
// $i counts; other variables are the script's.
func repeat(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: repeat N FILE")
	}
	times, err := strconv.Atoi(args[0])
	ts.Check(err)
	body := ts.ReadFile(args[1])
	for i := range times {
		for line := range strings.Lines(body) {
			ts.Setenv("i", strconv.Itoa(i+1))
			words := strings.Fields(os.Expand(line, ts.Getenv))
			if len(words) == 0 || strings.HasPrefix(words[0], "#") {
				continue
			}
			not := words[0] == "!"
			if not {
				words = words[1:]
			}
			f, ok := commands[words[0]]
			if !ok {
				ts.Fatalf("repeat: no command %q", words[0])
			}
			ts.Logf("(%d) %s", i+1, strings.TrimSpace(line))
			f(ts, not, words[1:])
		}
	}
}

// nothingRuns fails if a process still works in the script's folder, other than the script's own
// back-ends and machine.
func nothingRuns(w *world, _ []string) (string, error) {
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return "", err
	}
	var left []string
	for _, link := range links {
		dir, err := os.Readlink(link)
		if err == nil && strings.HasPrefix(dir, w.dir+"/") {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(link), "comm"))
			left = append(left, strings.TrimSpace(string(name))+" in "+dir)
		}
	}
	if len(left) > 0 {
		return "", fmt.Errorf("still running: %s", strings.Join(left, ", "))
	}
	return "", nil
}
