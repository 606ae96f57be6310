package spec

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"vdev/devsw"
	"vdev/internal/dev/fault"
)

// AnyID is the ID of a port that is given one.
const AnyID = -1

// What a port keeps of its output at least, and at most, in bytes.
const (
	minScrollback = 4 << 10
	maxScrollback = 1 << 30
)

// maxWatchers bounds the option watchers.
const maxWatchers = 64

// maxPortName is the longest name of a port in bytes. Linux takes longer ones, but they are names
// of links in /dev/virtio-ports.
const maxPortName = 100

// Port is a port of a console.
type Port struct {
	ID      int // or AnyID
	Name    string
	Console bool
	// Driver is what stands behind it: "pty", "stdio", "socket", "file", "null" or "loop".
	Driver   string
	Path     string // pty: the link; socket: where it is in the file system; file: the file
	Address  string // socket: HOST:PORT where it is TCP's
	Connect  bool   // socket: connects, rather than listens
	Watchers int    // socket: how many clients may read beside the one that writes; -1: chosen
	File     Rotation
	Log      *Log // what its output is written to beside, or nil
	// Scrollback is how much of the output is kept, in bytes; 0: chosen.
	Scrollback int64
	// Wait: the guest waits where nobody takes its output, rather than that the oldest is dropped.
	Wait bool
	Size devsw.Winsize // of the window, where no terminal tells; zero: none
	// Faulty: the driver fault stands on it, with these rules.
	Faulty bool
	Faults []fault.Rule
}

// Rotation says how a log is written.
type Rotation struct {
	Timestamps bool
	MaxSize    int64 // bytes; 0: it grows
	MaxFiles   int   // of MaxSize, with the one that is written to; 0: chosen
}

// Log is a file that a port's output is written to.
type Log struct {
	Path string
	Rotation
}

// String is what a port is called in errors and in the log.
func (p *Port) String() string {
	if p.Name != "" {
		return p.Name
	}
	return strconv.Itoa(p.ID)
}

// Place is what the driver gives access to, for people: empty where there is nothing to say.
func (p *Port) Place() string {
	if p.Address != "" {
		return p.Address
	}
	return p.Path
}

// Relative gives a path of the port's that depends on the folder that vdev was started in; empty:
// none does.
func (p *Port) Relative() string {
	for _, path := range []string{p.Path, p.logPath()} {
		if path != "" && !filepath.IsAbs(path) {
			return path
		}
	}
	return ""
}

// portOptions are those of every port, and portDrivers those of each driver.
var (
	portOptions = []string{"name", "id", "console", "driver", "log", "log-timestamps", "log-max-size", "log-max-files", "scrollback", "overflow", "size"}
	portDrivers = map[string][]string{
		"pty":    {"path"},
		"stdio":  {},
		"socket": {"path", "address", "connect", "watchers"},
		"file":   {"file", "timestamps", "max-size", "max-files"},
		"null":   {},
		"loop":   {},
	}
	portDriverNames = []string{"pty", "stdio", "socket", "file", "null", "loop", "fault"}
	// faultyOptions are those of the driver fault, which go with those of the one below.
	faultyOptions = []string{"rule", "lower"}
)

// portName is what the name of a port looks like: it is the name of a link in a Linux guest's
// /dev/virtio-ports, and stands in paths of HTTP and in lines of the log.
var portName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:+@-]*$`)

// allDigits is what an id looks like.
var allDigits = regexp.MustCompile(`^[0-9]+$`)

// ParsePort reads a port: OPTION=VALUE,..., where a comma that belongs to a value is written twice.
func ParsePort(s string) (Port, error) {
	p := Port{ID: AnyID, Watchers: -1}
	given := map[string]bool{}
	fields := splitOptions(s)
	if p.Driver = last(fields, "driver="); p.Driver == "" {
		return p, fmt.Errorf("the option driver is missing: %s", OneOf(portDriverNames))
	}
	options, names := portOptions, portDriverNames
	if p.Driver == "fault" {
		if p.Faulty, p.Driver = true, last(fields, "lower="); p.Driver == "" {
			return p, fmt.Errorf("driver=fault needs the option lower=NAME, and that driver's options")
		}
		options, names = slices.Concat(options, faultyOptions), names[:len(names)-1]
	}
	own, ok := portDrivers[p.Driver]
	if !ok {
		return p, fmt.Errorf("driver %q: must be %s", p.Driver, OneOf(names))
	}
	options = slices.Concat(options, own)
	for _, field := range fields {
		key, value, hasValue := strings.Cut(field, "=")
		if !slices.Contains(options, key) {
			return p, fmt.Errorf("a port with driver=%s has no option %q; it has %s", p.Driver, key, strings.Join(options, ", "))
		}
		if given[key] && key != "rule" {
			return p, fmt.Errorf("%s is given twice", key)
		}
		given[key] = true
		if err := p.set(key, value, hasValue); err != nil {
			return p, err
		}
	}
	if !given["console"] {
		p.Console = p.Name == ""
	}
	if !given["overflow"] {
		p.Wait = !p.Console
	}
	return p, p.check(given)
}

// last gives the value of the last option that begins so, or nothing.
func last(fields []string, prefix string) (value string) {
	for _, field := range fields {
		if v, ok := strings.CutPrefix(field, prefix); ok {
			value = v
		}
	}
	return value
}

// set sets one option.
func (p *Port) set(key, value string, hasValue bool) (err error) {
	switch key {
	case "driver", "lower": // known by now
	case "rule":
		var r fault.Rule
		if r, err = fault.ParseRule(value); err == nil {
			err = fault.LineRule(r)
		}
		if err != nil {
			err = errors.New(fault.Reason(err))
		}
		p.Faults = append(p.Faults, r)
	case "name":
		switch p.Name = value; {
		case !portName.MatchString(value) || len(value) > maxPortName:
			err = fmt.Errorf("name %q: must be of letters, digits, ., _, :, +, @ and -, begin with a letter or a digit, and have at most %d bytes", value, maxPortName)
		case allDigits.MatchString(value):
			err = fmt.Errorf("name %q: would be taken for an id", value)
		}
	case "id":
		p.ID, err = number(key, value, 0, maxPorts-1)
	case "console":
		p.Console, err = parseSwitch(key, value, hasValue)
	case "path", "file":
		if p.Path = value; value == "" {
			err = fmt.Errorf("%s: a path is missing", key)
		}
	case "address":
		var host, port string
		if host, port, err = net.SplitHostPort(value); err != nil || host == "" || !allDigits.MatchString(port) {
			err = fmt.Errorf("address %q: must be HOST:PORT, such as 127.0.0.1:4444", value)
		}
		p.Address = value
	case "connect":
		p.Connect, err = parseSwitch(key, value, hasValue)
	case "watchers":
		p.Watchers, err = number(key, value, 0, maxWatchers)
	case "timestamps":
		p.File.Timestamps, err = parseSwitch(key, value, hasValue)
	case "max-size":
		p.File.MaxSize, err = parseMaxSize(key, value)
	case "max-files":
		p.File.MaxFiles, err = number(key, value, 1, 1000)
	case "log":
		if p.log().Path = value; value == "" {
			err = fmt.Errorf("log: a path is missing")
		}
	case "log-timestamps":
		p.log().Timestamps, err = parseSwitch(key, value, hasValue)
	case "log-max-size":
		p.log().MaxSize, err = parseMaxSize(key, value)
	case "log-max-files":
		p.log().MaxFiles, err = number(key, value, 1, 1000)
	case "scrollback":
		if p.Scrollback, err = ParseSize(value); err == nil && (p.Scrollback < minScrollback || p.Scrollback > maxScrollback) {
			err = fmt.Errorf("scrollback=%s: must be from %s to %s", value, SizeText(minScrollback), SizeText(maxScrollback))
		}
	case "overflow":
		if p.Wait = value == "wait"; value != "wait" && value != "drop" {
			err = fmt.Errorf("overflow=%s: must be drop or wait", value)
		}
	case "size":
		p.Size, err = parseWinsize(value)
	}
	return err
}

// log gives the port a log where it has none.
func (p *Port) log() *Log {
	if p.Log == nil {
		p.Log = &Log{}
	}
	return p.Log
}

// check tells what does not go together.
func (p *Port) check(given map[string]bool) error {
	switch {
	case p.Console && p.Wait:
		return fmt.Errorf("overflow=wait: a console has overflow=drop, since a guest's CPU stands still while its console waits; console=off makes a port of it")
	case !p.Console && p.Size != devsw.Winsize{}:
		return fmt.Errorf("size: only a console has one, and with console=off there is none")
	case p.Driver == "pty" && p.Path == "":
		return fmt.Errorf("driver=pty needs the option path=PATH, where a link to the terminal is made")
	case p.Driver == "file" && p.Path == "":
		return fmt.Errorf("driver=file needs the option file=PATH")
	case p.Driver == "socket" && (p.Path == "") == (p.Address == ""):
		return fmt.Errorf("driver=socket needs either path=PATH or address=HOST:PORT")
	case p.Driver == "socket" && len(p.Path) > MaxSocketPath:
		return fmt.Errorf("path %s: is %d bytes long, and a socket's path has at most %d", p.Path, len(p.Path), MaxSocketPath)
	case p.Connect && given["watchers"]:
		return fmt.Errorf("watchers: with connect there is one client, vdev")
	case p.Log != nil && p.Log.Path == "":
		return fmt.Errorf("log-timestamps, log-max-size and log-max-files go with log=PATH")
	case p.Log != nil && p.Path != "" && filepath.Clean(p.Log.Path) == filepath.Clean(p.Path):
		return fmt.Errorf("log=%s: is the path of the port itself", p.Log.Path)
	}
	for prefix, r := range map[string]*Rotation{"": &p.File, "log-": p.rotation()} {
		if r.MaxFiles != 0 && r.MaxSize == 0 {
			return fmt.Errorf("%smax-files goes with %smax-size", prefix, prefix)
		}
	}
	return nil
}

// logPath is that of the log; empty: there is none.
func (p *Port) logPath() string {
	if p.Log == nil {
		return ""
	}
	return p.Log.Path
}

// rotation is that of the log.
func (p *Port) rotation() *Rotation {
	if p.Log == nil {
		return &Rotation{}
	}
	return &p.Log.Rotation
}

// number reads an option that is a whole number within bounds.
func number(key, value string, least, most int) (int, error) {
	n := Number{Min: least, Max: most}
	if err := n.Set(value); err != nil {
		return 0, fmt.Errorf("%s=%s: %w", key, value, err)
	}
	return n.Value, nil
}

// parseMaxSize reads the size at which a log is rotated.
func parseMaxSize(key, value string) (int64, error) {
	n, err := ParseSize(value)
	if err == nil && n < minScrollback {
		err = fmt.Errorf("must be at least %s", SizeText(minScrollback))
	}
	if err != nil {
		return 0, fmt.Errorf("%s=%s: %w", key, value, err)
	}
	return n, nil
}

// parseWinsize reads the size of a window: columns, x, rows.
func parseWinsize(s string) (devsw.Winsize, error) {
	cols, rows, _ := strings.Cut(s, "x")
	c, err1 := strconv.ParseUint(cols, 10, 16)
	r, err2 := strconv.ParseUint(rows, 10, 16)
	if err1 != nil || err2 != nil || c == 0 || r == 0 {
		return devsw.Winsize{}, fmt.Errorf("size=%s: must be COLUMNSxROWS, such as 100x40", s)
	}
	return devsw.Winsize{Col: uint16(c), Row: uint16(r)}, nil
}
