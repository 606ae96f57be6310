package spec

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"
)

// Several gives the devices and the settings that a command line asks for. devices are those of the
// configuration file, and texts the values of --device. fs has the flags of p.
func Several(fs *pflag.FlagSet, p *ProcessFlags, devices []Device, texts []string) (Config, error) {
	for _, text := range texts {
		d, err := parseDevice(text)
		if err != nil {
			return Config{}, fmt.Errorf("--device %s: %w", text, err)
		}
		devices = append(devices, d)
	}
	if len(devices) == 0 {
		return Config{}, errors.New("there is no device to serve: a file or --device is missing")
	}
	for i, d := range devices {
		for _, other := range devices[:i] {
			switch {
			case d.Name == other.Name:
				return Config{}, fmt.Errorf("two devices are called %s: name one of them otherwise", d.Name)
			case d.SocketPath != "" && filepath.Clean(d.SocketPath) == filepath.Clean(other.SocketPath):
				return Config{}, fmt.Errorf("devices %s and %s have the same socket-path %s", other.Name, d.Name, d.SocketPath)
			case d.SocketPath == "" && other.SocketPath == "" && d.FD == other.FD:
				return Config{}, fmt.Errorf("devices %s and %s have the same fd %d", other.Name, d.Name, d.FD)
			case d.Disk != nil && other.Disk != nil && d.Disk.shares(other.Disk):
				return Config{}, fmt.Errorf("devices %s and %s have the same image %s, and one of them may write to it", other.Name, d.Name, d.Disk.Driver.File)
			}
		}
	}
	return p.Config(fs.Changed, devices...)
}

// shares tells whether two disks have the same image, and cannot both have it open.
func (d *Disk) shares(other *Disk) bool {
	return d.locks() && other.locks() && filepath.Clean(d.Driver.File) == filepath.Clean(other.Driver.File) &&
		!(d.Driver.ReadOnly && other.Driver.ReadOnly) && !d.Incoming && !other.Incoming
}

// locks tells whether the image is locked while the disk is open: from others if the guest may
// write to it, or from those who may.
func (d *Disk) locks() bool {
	return (d.Driver.Name == "vnd" || d.Driver.Name == "qemu") && !d.Driver.QEMU.Snapshot
}

// parseDevice reads the value of --device.
func parseDevice(text string) (Device, error) {
	fields := splitOptions(text)
	typ := defaultType
	for _, field := range fields {
		if value, ok := strings.CutPrefix(field, "type="); ok {
			typ = value
		}
	}
	d, err := newDevice(typ)
	if err != nil {
		return Device{}, err
	}
	for _, field := range fields {
		key, value, hasValue := strings.Cut(field, "=")
		if !hasValue && d.isSwitch(key) {
			value = "true"
		} else if !hasValue {
			return Device{}, fmt.Errorf("%q is not key=value", field)
		}
		if err := d.set(key, value); err != nil {
			return Device{}, err
		}
	}
	return d.config()
}

// ParseFile reads the text of the configuration file path. It returns the devices that the file
// describes, and sets those of the flags fs that the file has and the command line has not.
func ParseFile(fs *pflag.FlagSet, path, text string) ([]Device, error) {
	var all map[string]any
	if _, err := toml.Decode(text, &all); err != nil {
		var syntax toml.ParseError
		if errors.As(err, &syntax) {
			return nil, fmt.Errorf("%s:%d: %s", path, syntax.Position.Line, syntax.Message)
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	keys := pflag.NewFlagSet("keys", pflag.ContinueOnError)
	NewProcessFlags().Register(keys)
	keys.Bool("strict", false, "") // the flag is of 'vdev serve' alone
	var tables []map[string]any
	for _, key := range sortedKeys(all) {
		if key == "device" {
			var ok bool
			if tables, ok = all[key].([]map[string]any); !ok {
				return nil, fmt.Errorf("%s: device: must be tables, each begun with [[device]]", path)
			}
			continue
		}
		if keys.Lookup(key) == nil {
			return nil, fmt.Errorf("%s: there is no key %q beside [[device]]; 'vdev serve --help' has them", path, key)
		}
		value, err := scalar(keys.Lookup(key), all[key])
		switch {
		case err != nil:
			err = fmt.Errorf("%s: %w", key, err)
		case !fs.Changed(key):
			err = setFlag(fs, key, value)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	var devices []Device
	for i, table := range tables {
		d, err := readDevice(table)
		if err != nil {
			which := strconv.Itoa(i + 1)
			if name, ok := table["name"].(string); ok {
				which += " (" + name + ")"
			}
			return nil, fmt.Errorf("%s: device %s: %w", path, which, err)
		}
		devices = append(devices, d)
	}
	return devices, nil
}

func readDevice(table map[string]any) (Device, error) {
	typ := defaultType
	if v, given := table["type"]; given {
		var err error
		if typ, err = scalar(nil, v); err != nil {
			return Device{}, fmt.Errorf("type: %w", err)
		}
	}
	d, err := newDevice(typ)
	if err != nil {
		return Device{}, err
	}
	for _, key := range sortedKeys(table) {
		if err := d.known(key); err != nil {
			return Device{}, err
		}
		values, isList := table[key].([]any)
		if !isList || !d.repeats(key) {
			values = []any{table[key]}
		}
		for _, v := range values {
			value, err := scalar(d.keys.Lookup(key), v)
			if err != nil {
				return Device{}, fmt.Errorf("%s: %w", key, err)
			}
			if err := d.set(key, value); err != nil {
				return Device{}, err
			}
		}
	}
	return d.config()
}

func sortedKeys(table map[string]any) []string {
	var keys []string
	for key := range table {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// scalar gives a TOML value as a flag would have it. Where the flag is nil, it is a string.
func scalar(f *pflag.Flag, v any) (string, error) {
	want, isChoice := "a string", false
	if f != nil {
		switch f.Value.(type) {
		case *Number:
			want = "a whole number"
		case *Choice:
			isChoice = true // of words, some of which are numbers
		default:
			if f.Value.Type() == "bool" {
				want = "true or false"
			}
		}
	}
	switch v := v.(type) {
	case string:
		if want == "a string" {
			return v, nil
		}
	case bool:
		if want == "true or false" {
			return strconv.FormatBool(v), nil
		}
	case int64:
		if want == "a whole number" || isChoice {
			return strconv.FormatInt(v, 10), nil
		}
	}
	return "", errors.New("must be " + want)
}

// Flags describe a device of one kind, as they are given.
type Flags interface {
	// Register makes them flags of fs.
	Register(fs *pflag.FlagSet)
	// Config checks them together. given tells whether a flag was given.
	Config(given func(flag string) bool) (Device, error)
}

// kinds are what a device can be, by the command that serves one alone.
var kinds = map[string]struct {
	noun  string
	flags func() Flags
}{
	"blk":     {"a disk", func() Flags { return NewDiskFlags() }},
	"console": {"a console", func() Flags { return NewConsoleFlags() }},
}

// kindNames is the order in which errors list the kinds.
var kindNames = []string{"blk", "console"}

// defaultType is what a device is of which that is not said.
const defaultType = "blk"

// deviceKeys collects the keys of one device.
type deviceKeys struct {
	kind  string
	flags Flags
	keys  *pflag.FlagSet
	name  string
	seen  map[string]bool
}

func newDevice(typ string) (*deviceKeys, error) {
	k, ok := kinds[typ]
	if !ok {
		return nil, fmt.Errorf("type %q: must be %s", typ, OneOf(kindNames))
	}
	d := &deviceKeys{kind: typ, flags: k.flags(), keys: pflag.NewFlagSet("device", pflag.ContinueOnError), seen: map[string]bool{}}
	d.flags.Register(d.keys)
	return d, nil
}

// isSwitch tells whether a key may stand without a value.
func (d *deviceKeys) isSwitch(key string) bool { return d.holds(key, "bool") }

// repeats tells whether a key may be given several times.
func (d *deviceKeys) repeats(key string) bool { return d.holds(key, "stringArray") }

// holds tells whether the values of a key are of this type of pflag's.
func (d *deviceKeys) holds(key, typ string) bool {
	f := d.keys.Lookup(key)
	return f != nil && f.Value.Type() == typ
}

// deviceName is what a name looks like: it stands in paths of HTTP and in lines of the log.
var deviceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// known tells whether there is a key of that name.
func (d *deviceKeys) known(key string) error {
	if key != "name" && key != "type" && d.keys.Lookup(key) == nil {
		return fmt.Errorf("there is no key %q; it is the flags of 'vdev %s' that describe %s, and name and type", key, d.kind, kinds[d.kind].noun)
	}
	return nil
}

func (d *deviceKeys) set(key, value string) error {
	if err := d.known(key); err != nil {
		return err
	}
	if d.seen[key] && !d.repeats(key) {
		return fmt.Errorf("%s is given twice", key)
	}
	d.seen[key] = true
	switch key {
	case "name":
		if d.name = value; !deviceName.MatchString(value) {
			return fmt.Errorf("name %q: must be of letters, digits, ., _ and -, and begin with a letter or a digit", value)
		}
		return nil
	case "type":
		return nil // known by now
	}
	return setFlag(d.keys, key, value)
}

// setFlag sets a flag that is called a key here.
func setFlag(fs *pflag.FlagSet, key, value string) error {
	err := fs.Set(key, value)
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		cause := errors.Unwrap(invalid)
		switch fs.Lookup(key).Value.Type() { // these say how they were read, and the value again
		case "bool":
			cause = errors.New("must be true or false")
		case "duration":
			cause = errors.New("must be a time, such as 10s")
		}
		return fmt.Errorf("%s = %q: %w", key, value, cause)
	}
	return err
}

func (d *deviceKeys) config() (Device, error) {
	c, err := d.flags.Config(d.keys.Changed)
	if err != nil {
		return c, err
	}
	c.Name = d.name
	if c.Name == "" {
		if c.Name = strings.TrimSuffix(filepath.Base(c.SocketPath), ".sock"); c.SocketPath == "" {
			c.Name = fmt.Sprintf("fd%d", c.FD)
		}
		if !deviceName.MatchString(c.Name) {
			return c, fmt.Errorf("a name is missing: the socket's, %q, is none that a device can have", c.Name)
		}
	}
	return c, nil
}
