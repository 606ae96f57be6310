package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newServeCommand() *cobra.Command {
	p := newProcessFlags()
	var devices []string
	cmd := &cobra.Command{
		Use:   "serve [CONFIG] [--device key=value,...]...",
		Short: "Serve several disks",
		Long: `Serves several disks, each on a socket of its own, for one virtual machine or many.

Disks share vdev's event loops, its log and its control socket. They are as good as alone
otherwise: storage that hangs under one of them, a front-end that does not answer, a stop that
takes its time are no business of the others. One that cannot be opened at the start has no
socket; the log and 'vdev ctl status' say why. It is tried again, after a second at first and
each minute later, and at once after SIGHUP; then it is served like the others. If it never is,
the exit status at the end is 1. With --strict it keeps all from being served. One that fails
later does not end the others.

A disk is described by the flags of 'vdev blk', without their dashes, and a name:

  --device name=root,socket-path=/run/vm1-root.sock,blk-file=root.qcow2
  --device name=scratch,socket-path=/run/vm1-scratch.sock,driver=md,,size=1G

(a comma that belongs to a value is written twice), or in the file CONFIG, in TOML:

  control = "/run/vdev.ctl"      # the flags below, without their dashes; the command line's
  log-level = "warn"             # go before them

  [[device]]
  name = "root"                  # default: the socket's, without folder and .sock
  socket-path = "/run/vm1-root.sock"
  blk-file = "root.qcow2"

  [[device]]
  socket-path = "/run/vm1-scratch.sock"
  driver = "md,size=1G"
  serial = "scratch"
  num-queues = 4

Paths are from the folder that vdev is started in, as they are for its flags.

The log, the trace and 'vdev ctl' know a disk by its name; vdev ctl --device NAME speaks to it.
Signals are those of 'vdev blk', for all disks.`,
		Example: `  vdev serve /etc/vdev.toml
  vdev serve --control /run/vdev.ctl --device socket-path=a.sock,blk-file=a.img --device socket-path=b.sock,blk-file=b.img`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := severalDisks(cmd.Flags(), p, args, devices)
			if err != nil {
				return err
			}
			if err := serve(cmd.Context(), c, cmd.ErrOrStderr()); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.BoolVar(&p.strict, "strict", false, "serve all disks or none: end if one of them cannot be opened at the start")
	fs.StringArrayVar(&devices, "device", nil, "serve the disk that `KEY=VALUE,...` describe")
	p.register(fs)
	p.complete(cmd)
	completeNothing(cmd, "device")
	return cmd
}

// severalDisks is what the command line, with the file that it may name, comes to.
func severalDisks(fs *pflag.FlagSet, p *processFlags, files, devices []string) (config, error) {
	var disks []diskConfig
	for _, path := range files {
		var err error
		if disks, err = readConfig(fs, path); err != nil {
			return config{}, err
		}
	}
	for _, text := range devices {
		d, err := parseDevice(text)
		if err != nil {
			return config{}, fmt.Errorf("--device %s: %w", text, err)
		}
		disks = append(disks, d)
	}
	if len(disks) == 0 {
		return config{}, errors.New("there is no disk to serve: a file or --device is missing")
	}
	for i, d := range disks {
		for _, other := range disks[:i] {
			switch {
			case d.name == other.name:
				return config{}, fmt.Errorf("two devices are called %s: name one of them otherwise", d.name)
			case d.socketPath != "" && filepath.Clean(d.socketPath) == filepath.Clean(other.socketPath):
				return config{}, fmt.Errorf("devices %s and %s have the same socket-path %s", other.name, d.name, d.socketPath)
			case d.socketPath == "" && other.socketPath == "" && d.fd == other.fd:
				return config{}, fmt.Errorf("devices %s and %s have the same fd %d", other.name, d.name, d.fd)
			case d.locks() && other.locks() && filepath.Clean(d.driver.file) == filepath.Clean(other.driver.file) &&
				!(d.driver.readOnly && other.driver.readOnly) && !d.incoming && !other.incoming:
				return config{}, fmt.Errorf("devices %s and %s have the same image %s, and one of them may write to it", other.name, d.name, d.driver.file)
			}
		}
	}
	return p.config(fs.Changed, disks...)
}

// locks tells whether the image is locked while the disk is open: from others if the guest may write to it, or from those who may.
func (c *diskConfig) locks() bool {
	return (c.driver.name == "vnd" || c.driver.name == "qemu") && !c.driver.qemu.snapshot
}

// parseDevice reads the value of --device.
func parseDevice(text string) (diskConfig, error) {
	d := newDevice()
	for _, field := range splitOptions(text) {
		key, value, hasValue := strings.Cut(field, "=")
		if !hasValue && d.isSwitch(key) {
			value = "true"
		} else if !hasValue {
			return diskConfig{}, fmt.Errorf("%q is not key=value", field)
		}
		if err := d.set(key, value); err != nil {
			return diskConfig{}, err
		}
	}
	return d.config()
}

// readConfig reads a configuration file: the disks that it describes, and what else it sets among the flags fs, unless the command
// line has.
func readConfig(fs *pflag.FlagSet, path string) ([]diskConfig, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, &failure{err} // it has the path in it
	}
	return parseConfig(fs, path, string(text))
}

// parseConfig is readConfig of a file's text.
func parseConfig(fs *pflag.FlagSet, path, text string) ([]diskConfig, error) {
	var all map[string]any
	if _, err := toml.Decode(text, &all); err != nil {
		var syntax toml.ParseError
		if errors.As(err, &syntax) {
			return nil, fmt.Errorf("%s:%d: %s", path, syntax.Position.Line, syntax.Message)
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	keys := pflag.NewFlagSet("keys", pflag.ContinueOnError)
	newProcessFlags().register(keys)
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
	var disks []diskConfig
	for i, table := range tables {
		d, err := readDevice(table)
		if err != nil {
			which := strconv.Itoa(i + 1)
			if name, ok := table["name"].(string); ok {
				which += " (" + name + ")"
			}
			return nil, fmt.Errorf("%s: device %s: %w", path, which, err)
		}
		disks = append(disks, d)
	}
	return disks, nil
}

func readDevice(table map[string]any) (diskConfig, error) {
	d := newDevice()
	for _, key := range sortedKeys(table) {
		if err := d.known(key); err != nil {
			return diskConfig{}, err
		}
		value, err := scalar(d.keys.Lookup(key), table[key])
		if err != nil {
			return diskConfig{}, fmt.Errorf("%s: %w", key, err)
		}
		if err := d.set(key, value); err != nil {
			return diskConfig{}, err
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
		case *number:
			want = "a whole number"
		case *choice:
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

// deviceKeys collects the keys of one disk.
type deviceKeys struct {
	flags *diskFlags
	keys  *pflag.FlagSet
	name  string
	seen  map[string]bool
}

func newDevice() *deviceKeys {
	d := &deviceKeys{flags: newDiskFlags(), keys: pflag.NewFlagSet("device", pflag.ContinueOnError), seen: map[string]bool{}}
	d.flags.register(d.keys)
	return d
}

// isSwitch tells whether a key may stand without a value.
func (d *deviceKeys) isSwitch(key string) bool {
	f := d.keys.Lookup(key)
	return f != nil && f.Value.Type() == "bool"
}

// deviceName is what a name looks like: it stands in paths of HTTP and in lines of the log.
var deviceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// known tells whether there is a key of that name.
func (d *deviceKeys) known(key string) error {
	if key != "name" && d.keys.Lookup(key) == nil {
		return fmt.Errorf("there is no key %q; it is the flags of 'vdev blk' that describe a disk, and name", key)
	}
	return nil
}

func (d *deviceKeys) set(key, value string) error {
	if err := d.known(key); err != nil {
		return err
	}
	if d.seen[key] {
		return fmt.Errorf("%s is given twice", key)
	}
	d.seen[key] = true
	if key == "name" {
		if d.name = value; !deviceName.MatchString(value) {
			return fmt.Errorf("name %q: must be of letters, digits, ., _ and -, and begin with a letter or a digit", value)
		}
		return nil
	}
	return setFlag(d.keys, key, value)
}

// setFlag sets a flag that is called a key here.
func setFlag(fs *pflag.FlagSet, key, value string) error {
	err := fs.Set(key, value)
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return fmt.Errorf("%s = %q: %w", key, value, errors.Unwrap(invalid))
	}
	return err
}

func (d *deviceKeys) config() (diskConfig, error) {
	c, err := d.flags.config(d.keys.Changed)
	if err != nil {
		return c, err
	}
	c.name = d.name
	if c.name == "" {
		if c.name = strings.TrimSuffix(filepath.Base(c.socketPath), ".sock"); c.socketPath == "" {
			c.name = fmt.Sprintf("fd%d", c.fd)
		}
		if !deviceName.MatchString(c.name) {
			return c, fmt.Errorf("a name is missing: the socket's, %q, is none that a device can have", c.name)
		}
	}
	return c, nil
}
