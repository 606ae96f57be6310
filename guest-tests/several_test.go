package guesttests

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// startSeveral is "backends NAME ARG...": one vdev that serves several disks, with its control
// socket at NAME.ctl and its log in NAME.log. Each --device has a name, and gets a socket of its
// own; where other commands want the name of a back-end, the name of a device does. It is NAME that
// ends, and is killed.
func startSeveral(w *world, args []string) (string, error) {
	if len(args) < 2 {
		return "", errors.New("usage: backends NAME ARG...")
	}
	name := args[0]
	if b := w.backends[name]; b != nil && !b.killed {
		return "", fmt.Errorf("back-end %s runs already", name)
	}
	words := append([]string{"serve", "--control", name + ".ctl"}, args[1:]...)
	var devices, sockets []string
	var consoles []bool
	for i, word := range words {
		if word != "--device" || i+1 == len(words) {
			continue
		}
		m := deviceName.FindStringSubmatch(words[i+1])
		if m == nil {
			return "", fmt.Errorf("--device %s: a name is missing", words[i+1])
		}
		device := m[1]
		socket := filepath.Join(w.dir, device+".sock")
		words[i+1] += ",socket-path=" + socket
		devices, sockets = append(devices, device), append(sockets, socket)
		consoles = append(consoles, strings.Contains(","+words[i+1], ",type=console,"))
	}
	if len(devices) == 0 {
		return "", errors.New("backends: there is no --device")
	}
	// The sockets are made one after the other: when somebody listens on the last one, all are
	// there.
	err := w.startAs(name, sockets[len(sockets)-1], func() (*exec.Cmd, error) {
		program, err := w.vdev()
		if err != nil {
			return nil, err
		}
		return w.vdevCommand(program, slices.Clone(words)), nil
	})
	if err != nil {
		return "", err
	}
	whole := w.backends[name]
	for i, device := range devices {
		part := &backend{name: device, of: name, whole: whole, socket: sockets[i], log: whole.log, cmd: whole.cmd, process: whole.process,
			console: consoles[i]}
		whole.parts = append(whole.parts, part)
		w.backends[device] = part
	}
	return "", nil
}

// deviceName finds the name in the value of --device.
var deviceName = regexp.MustCompile(`(?:^|,)name=([^,]+)`)

// control is "ctl NAME ARG...": vdev ctl for a back-end that was started with --control NAME.ctl,
// or for one of several devices.
func control(w *world, args []string) (string, error) {
	if len(args) < 2 {
		return "", errors.New("usage: ctl NAME ARG...")
	}
	ctx, cancel := w.context()
	defer cancel()
	return w.exec(ctx, w.ctlWords(args[0], args[1:]))
}

func (w *world) ctlWords(name string, args []string) []string {
	words := []string{"vdev", "ctl", "--socket", name + ".ctl"}
	if b := w.backends[name]; b != nil && b.whole != nil {
		words = []string{"vdev", "ctl", "--socket", b.of + ".ctl", "--device", b.name}
	}
	return append(words, args...)
}

// traceOf gives the lines of a log's trace that are a device's, without its name.
func traceOf(log, device string) string {
	line := regexp.MustCompile(`(?m)^( *\d+\.\d+ )` + regexp.QuoteMeta(device) + ` (.*\n)`)
	var out strings.Builder
	for _, m := range line.FindAllStringSubmatch(log, -1) {
		out.WriteString(m[1] + m[2])
	}
	return out.String()
}
