package guesttests

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vdev/guest-tests/internal/proxy"
)

// watch is "watch [-hold DURATION] NAME": a proxy stands between QEMU and the back-end from the
// next "qemu" on, and holds each answer to GET_VRING_BASE back for so long, to look at guest
// memory.
func watch(w *world, args []string) (string, error) {
	flags := flag.NewFlagSet("watch", flag.ContinueOnError)
	hold := flags.Duration("hold", 5*time.Millisecond, "")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	b, err := w.backend(flags.Arg(0))
	if err != nil {
		return "", err
	}
	p := w.proxies[flags.Arg(0)]
	if p == nil {
		if p, err = proxy.Listen(proxySocket(b.socket), b.socket); err != nil {
			return "", err
		}
		w.proxies[flags.Arg(0)] = p
	}
	p.Hold(*hold, nil)
	return "", nil
}

func proxySocket(socket string) string { return strings.TrimSuffix(socket, ".sock") + ".watch" }

// socketFor returns where QEMU reaches a back-end.
func (w *world) socketFor(b *backend, name string) string {
	if w.proxies[name] != nil {
		return proxySocket(b.socket)
	}
	return b.socket
}

func (w *world) proxy(name string) (*proxy.Proxy, error) {
	if p := w.proxies[name]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("nobody watches %q", name)
}

// watched is "[!] watched NAME": the back-end has written nothing and called nobody when it must
// not, or, negated, has.
func watched(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: watched NAME")
	}
	p, err := worldOf(ts).proxy(args[0])
	ts.Check(err)
	r := p.Report()
	judge(ts, neg, r, r.Findings, r.Dropped)
}

// judge shows a report, and ends the script where something was found, or, negated, where nothing
// was. dropped is how many findings more there are.
func judge(ts *testscript.TestScript, neg bool, report fmt.Stringer, findings []string, dropped int) {
	show(ts, report.String())
	ts.Logf("%v", report)
	switch {
	case neg && len(findings) == 0:
		ts.Fatalf("nothing was found")
	case !neg && len(findings) > 0:
		ts.Fatalf("%s (%d findings in all)", findings[0], len(findings)+dropped)
	}
}

// busy is "busy NAME N": N more requests of the guest's complete.
func busy(w *world, args []string) (string, error) {
	if len(args) != 2 {
		return "", errors.New("usage: busy NAME N")
	}
	p, err := w.proxy(args[0])
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	ctx, cancel := w.context()
	defer cancel()
	return "", awaitWork(ctx, p, n)
}

// awaitWork waits until n requests have completed. The rings are in memory, so they are looked at
// again and again.
func awaitWork(ctx context.Context, p *proxy.Proxy, n int) error {
	first := p.Report()
	for {
		r := p.Report()
		if r.Completed-first.Completed >= uint64(n) {
			return nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d of %d requests completed: %w", r.Completed-first.Completed, n, context.Cause(ctx))
		}
	}
}

// idleTime is how long no request completes on a disk that is said to be idle.
const idleTime = 100 * time.Millisecond

// idle is "idle NAME...": no more requests complete, because none is made or because all that are
// made hang.
func idle(w *world, args []string) (string, error) {
	ctx, cancel := w.context()
	defer cancel()
	for _, name := range args {
		p, err := w.proxy(name)
		if err != nil {
			return "", err
		}
		for last := uint64(0); ; {
			r := p.Report()
			if r.Completed == last {
				break
			}
			last = r.Completed
			select {
			case <-time.After(idleTime):
			case <-ctx.Done():
				return "", fmt.Errorf("%s is still busy: %w", name, context.Cause(ctx))
			}
		}
	}
	return "", nil
}

// pause is "pause [-for DURATION] [-release] [-let FOLDER] [-continue OTHER] NAME...": stop, and
// cont after that time. Meanwhile nothing may write to the guest's memory, which is found out where
// those back-ends are watched. With -release what hangs in the back-ends is let go in between, and
// hangs no more; with -let so does what is held in a folder of hangfs; with -continue another
// back-end, which was stopped by a signal, goes on.
func pause(w *world, args []string) (string, error) {
	flags := flag.NewFlagSet("pause", flag.ContinueOnError)
	length := flags.Duration("for", 50*time.Millisecond, "")
	release := flags.Bool("release", false, "")
	var folders []string
	flags.Func("let", "", func(s string) error { folders = append(folders, s); return nil })
	other := flags.String("continue", "", "")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	m, err := w.running()
	if err != nil {
		return "", err
	}
	ctx, cancel := w.context()
	defer cancel()
	if _, err := m.Do(ctx, "stop", nil); err != nil {
		return "", err
	}
	var thaws []func() (int, error)
	for _, name := range flags.Args() {
		p, err := w.proxy(name)
		if err != nil {
			return "", err
		}
		thaw, err := p.Freeze()
		if err != nil {
			return "", err
		}
		thaws = append(thaws, thaw)
	}
	if *release {
		if err := w.goOn(flags.Args()); err != nil {
			return "", err
		}
	}
	for _, folder := range folders {
		if _, err := letGo(w, []string{folder}); err != nil {
			return "", err
		}
	}
	if *other != "" {
		if _, err := sendSignal(w, []string{*other, "CONT"}); err != nil {
			return "", err
		}
	}
	time.Sleep(*length)
	for _, thaw := range thaws {
		if _, err := thaw(); err != nil {
			return "", err
		}
	}
	_, err = m.Do(ctx, "cont", nil)
	return "", err
}

// exec runs a program as the script's exec does.
func (w *world) exec(ctx context.Context, words []string) (string, error) {
	path, err := w.lookPath(words[0])
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, words[1:]...)
	cmd.Dir = w.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(words, " "), err, out)
	}
	return string(out), nil
}

// deaf is "deaf COMMAND ARG...": does a command of this package, and tells how long QEMU's monitor
// was deaf meanwhile.
func deaf(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 || commands[args[0]] == nil {
		ts.Fatalf("usage: deaf COMMAND ARG...")
	}
	w := worldOf(ts)
	m, err := w.running()
	ts.Check(err)
	ctx, cancel := w.context()
	defer cancel()
	meter, err := m.Measure(ctx)
	ts.Check(err)
	defer func() {
		longest, answers := meter.Stop()
		ts.Logf("(QEMU's monitor was deaf for %.3f s; %d answers)", longest.Seconds(), answers)
		w.deafness = max(w.deafness, longest)
	}()
	commands[args[0]](ts, neg, args[1:])
}

// deafness is "deafness WHAT...": the longest that the monitor was deaf during the commands after
// "deaf" since the last time this was asked.
func deafness(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	figure(ts, fmt.Sprintf("QEMU's monitor was deaf for %.3f s at most: %s", w.deafness.Seconds(), strings.Join(args, " ")))
	w.deafness = 0
}

// figure tells something that was measured, to whoever runs the tests too. No test depends on it.
func figure(ts *testscript.TestScript, text string) {
	ts.Logf("%s", text)
	fmt.Fprintf(os.Stderr, "         %s: %s\n", strings.TrimPrefix(worldOf(ts).t.Name(), "TestGuests/"), text)
}

// restartBackend is "restart [-n N] [-term] [-busy N] [-within DURATION] NAME": N times the
// back-end is killed, at a random moment within that time after so many requests were served, and
// started again on the same socket, as it was started first.
func restartBackend(w *world, args []string) (string, error) {
	flags := flag.NewFlagSet("restart", flag.ContinueOnError)
	times := flags.Int("n", 1, "")
	term := flags.Bool("term", false, "")
	work := flags.Int("busy", 0, "")
	within := flags.Duration("within", 0, "")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	name := flags.Arg(0)
	for range *times {
		b, err := w.backend(name)
		if err != nil {
			return "", err
		}
		if *work > 0 {
			p, err := w.proxy(name)
			if err != nil {
				return "", err
			}
			ctx, cancel := w.context()
			err = awaitWork(ctx, p, *work)
			cancel()
			if err != nil {
				return "", err
			}
		}
		if *within > 0 {
			time.Sleep(rand.N(*within))
		}
		p := w.proxies[name]
		if p != nil {
			p.Down()
		}
		if *term {
			if err := b.stop(); err != nil && !b.foreign {
				return "", err
			}
		} else if b.crash(); b.beside {
			os.Remove(b.socket) // not every program takes away what one before has left
		}
		if err := w.startAs(name, b.socket, b.again); err != nil {
			return "", err
		}
		if p != nil {
			if err := p.Up(); err != nil {
				return "", err
			}
		}
	}
	return "", nil
}

// mutantCommand is "mutant FILE": from here on "backend" starts a vdev with a defect. The file has
// one change or several, with a line "---" between them. Each names a source file of the repository
// in its first line, and then says what stands in it, exactly once, and, after a line "=>", what is
// to stand there instead.
func mutantCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: mutant FILE")
	}
	defer timed(ts)()
	program, err := buildMutant(ts.Getenv("WORK"), args[0], ts.ReadFile(args[0]))
	ts.Check(err)
	worldOf(ts).mutant = program
}

// changedBy gives what the sources are with a mutant's defect, by the files' paths.
func changedBy(name, text string) (map[string]string, error) {
	changed := map[string]string{}
	for change := range strings.SplitSeq(text, "---\n") {
		file, rest, _ := strings.Cut(change, "\n")
		from, to, ok := strings.Cut(rest, "=>\n")
		if !ok {
			return nil, errors.New("a mutant is FILE, OLD TEXT, =>, NEW TEXT")
		}
		path, err := filepath.Abs(filepath.Join("..", file))
		if err != nil {
			return nil, err
		}
		source, known := changed[path]
		if !known {
			b, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			source = string(b)
		}
		if n := strings.Count(source, from); n != 1 {
			return nil, fmt.Errorf("mutant %s: what it changes stands %d times in %s:\n%s", name, n, file, from)
		}
		changed[path] = strings.Replace(source, from, to, 1)
	}
	return changed, nil
}

func buildMutant(dir, name, text string) (string, error) {
	changed, err := changedBy(name, text)
	if err != nil {
		return "", err
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for path, source := range changed {
		overlay.Replace[path] = filepath.Join(dir, fmt.Sprintf("%s-%d.go", name, len(overlay.Replace)))
		if err := os.WriteFile(overlay.Replace[path], []byte(source), 0o644); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	overlayFile := filepath.Join(dir, name+".json")
	if err := os.WriteFile(overlayFile, list, 0o644); err != nil {
		return "", err
	}
	out := filepath.Join(dir, "vdev-"+name)
	build := exec.Command("go", "build", "-overlay", overlayFile, "-o", out, "../cmd/vdev")
	if text, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("mutant %s: %w\n%s", name, err, text)
	}
	return out, nil
}

// lifeLine is what --trace prints of a device's and of its rings' life, and of what storage has
// made of transfers.
var lifeLine = regexp.MustCompile(`(?m)^ *(\d+\.\d+) (?:specfs  (?:block|character) (\d+,\d+) (\w+)(:.*)?|vhost   (start|out GET_VRING_BASE|disconnect)\b(?: ring=(\d+))?|blk     queue \d+ (?:read|write) .*: (ok|cancelled)$)`)

// afterStep says which steps of a device's life may follow which. A device that was never opened is
// closed.
var afterStep = map[string][]string{
	"closed":   {"open"},
	"open":     {"opened", "failed", "cancel"}, // a device may be revoked while it is being opened
	"opened":   {"cancel"},
	"failed":   {"open"},
	"cancel":   {"canceled"},
	"canceled": {"drain"},
	"drain":    {"drained"},
	"drained":  {"close"},
	"close":    {"closed"},
}

// life is "life NAME": the log of a back-end with --trace tells of devices that were opened, and
// taken down in order: cancel, drain, close; and where the last ring's stop was answered, or the
// connection has ended, all was closed. Nor is there a transfer between the end of a drain and the
// next open, and the times only grow. The output counts.
func life(w *world, args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("usage: life NAME")
	}
	b, err := w.backend(args[0])
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(b.log)
	if err != nil {
		return "", err
	}
	if b.whole != nil {
		return checkLife(traceOf(string(text), b.name))
	}
	return checkLife(string(text))
}

func checkLife(log string) (string, error) {
	state := map[string]string{}
	running := map[string]bool{}
	counts := map[string]int{}
	last := 0.0
	for _, m := range lifeLine.FindAllStringSubmatch(log, -1) {
		at, dev, step, event, ring := m[1], m[2], m[3], m[5], m[6]
		// By more than that, it is another process, which has begun to count anew.
		const disorder = 0.05
		if seconds, err := strconv.ParseFloat(at, 64); err != nil || seconds < last && seconds > last-disorder {
			return "", fmt.Errorf("at %s, after %f: the lines are not in the order of their times", at, last)
		} else {
			last = seconds
		}
		if step == "opened" && m[4] != "" {
			step = "failed"
		}
		switch {
		case m[7] != "":
			for dev, s := range state {
				if slices.Contains([]string{"drained", "close", "closed"}, s) {
					return "", fmt.Errorf("at %s %s, and device %s is %s", at, strings.TrimSpace(m[0]), dev, s)
				}
			}
		case step == "revoke" || step == "revoked":
		case dev != "":
			was, known := state[dev]
			if !known {
				was = "closed"
			}
			if !slices.Contains(afterStep[was], step) {
				return "", fmt.Errorf("at %s device %s: %s after %s", at, dev, step, was)
			}
			state[dev] = step
			counts[step]++
		case event == "start":
			running[ring] = true
			continue
		default:
			delete(running, ring)
			if event == "disconnect" {
				clear(running)
			}
			counts[strings.TrimPrefix(event, "out ")]++
			if len(running) > 0 {
				continue
			}
			for dev, s := range state {
				if s != "closed" && s != "failed" {
					return "", fmt.Errorf("at %s %s, and device %s is no further than %s", at, m[0], dev, s)
				}
			}
		}
	}
	if counts["open"] == 0 {
		return "", errors.New("the log tells of no device; was the back-end started with --trace?")
	}
	var out strings.Builder
	for _, name := range []string{"opened", "cancel", "drained", "closed", "GET_VRING_BASE", "disconnect"} {
		fmt.Fprintf(&out, "%s=%d ", name, counts[name])
	}
	return strings.TrimSpace(out.String()), nil
}
