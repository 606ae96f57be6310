package spec

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"vdev/internal/dev/fault"
	"vdev/internal/dev/nbd"
	"vdev/internal/dev/qemunbd"
)

// Driver says which driver serves the disk, and with which options. --driver and --blk-file give
// it.
type Driver struct {
	Name      string // "md", "vnd", "nbd", "qemu" or "null"; faults may stand on it
	Detect    bool   // the file alone was named: settle decides on the driver
	File      string // the image, or what a memory disk is filled with
	Size      int64  // bytes; 0 where the file says it
	ReadOnly  bool
	Direct    bool // O_DIRECT
	Bounce    bool // transfers are copied
	NoDiscard bool
	NBD       NBD
	QEMU      QEMU
	Faults    *Faults // what stands on it, or nil
}

// NBD has the options of the driver nbd.
type NBD struct {
	URI         string
	Connections int // 0: chosen
	Delay       time.Duration
	Unflushed   nbd.Unflushed
}

// unflushedNames are the values of the option unflushed, by nbd.Unflushed.
var unflushedNames = []string{"auto", "lost", "kept"}

// Faults has the options of the driver fault, which stands on another one.
type Faults struct {
	Rules    []fault.Rule
	Cache    int64 // bytes
	NoCancel bool
}

// driverOptions names the options that each driver takes.
var driverOptions = map[string][]string{
	"md":   {"size", "file", "read-only"},
	"vnd":  {"file", "read-only", "direct", "bounce", "no-discard"},
	"nbd":  {"uri", "connections", "reconnect-delay", "unflushed", "read-only"},
	"qemu": {"file", "format", "snapshot", "read-only", "direct", "no-discard", "detect-zeroes", "backing-chain", "connections", "program"},
	"null": {"size", "read-only"},
}

// faultOptions names the options of fault. The last one is a driver with its options.
var faultOptions = []string{"rule", "cache", "no-cancel", "lower"}

// driverNames is the order in which help and errors list the drivers.
var driverNames = []string{"vnd", "md", "nbd", "qemu", "null", "fault"}

// ParseDriver reads a driver with its options: NAME[,option[=value]]..., where a comma that belongs
// to a value is written twice, as on QEMU's command line.
func ParseDriver(s string) (Driver, error) {
	fields := splitOptions(s)
	if fields[0] == "fault" {
		return parseFault(fields[1:])
	}
	return parseFields(fields, driverNames)
}

// parseFields reads the name of a driver and its options. names are those it may be chosen from.
func parseFields(fields, names []string) (Driver, error) {
	spec := Driver{Name: fields[0]}
	options, ok := driverOptions[spec.Name]
	if !ok {
		return spec, fmt.Errorf("driver %q: must be %s", spec.Name, OneOf(names))
	}
	seen := map[string]bool{}
	for _, field := range fields[1:] {
		key, value, hasValue := strings.Cut(field, "=")
		if !slices.Contains(options, key) {
			return spec, fmt.Errorf("driver %s has no option %q; it has %s", spec.Name, key, strings.Join(options, ", "))
		}
		if seen[key] {
			return spec, fmt.Errorf("driver %s: option %s is given twice", spec.Name, key)
		}
		seen[key] = true
		var err error
		switch key {
		case "size":
			if spec.Size, err = ParseSize(value); err == nil && spec.Size == 0 {
				err = fmt.Errorf("size %q: must be more than 0", value)
			}
		case "file":
			if spec.File = value; value == "" {
				err = fmt.Errorf("file: a path is missing")
			}
		case "read-only":
			spec.ReadOnly, err = parseSwitch(key, value, hasValue)
		case "direct":
			spec.Direct, err = parseSwitch(key, value, hasValue)
		case "bounce":
			spec.Bounce, err = parseSwitch(key, value, hasValue)
		case "no-discard":
			spec.NoDiscard, err = parseSwitch(key, value, hasValue)
		case "format":
			spec.QEMU.Format, err = parseFormat(value)
		case "snapshot":
			spec.QEMU.Snapshot, err = parseSwitch(key, value, hasValue)
		case "detect-zeroes":
			if spec.QEMU.DetectZeroes = value; !slices.Contains(detectZeroes, value) {
				err = fmt.Errorf("detect-zeroes=%s: must be %s", value, OneOf(detectZeroes))
			}
		case "backing-chain":
			spec.QEMU.Chain, err = parseChain(value)
		case "program":
			if spec.QEMU.Program = value; value == "" {
				err = fmt.Errorf("program: a path is missing")
			}
		case "uri":
			spec.NBD.URI = value
		case "connections":
			if spec.NBD.Connections, err = strconv.Atoi(value); err != nil || spec.NBD.Connections < 1 || spec.NBD.Connections > nbd.MaxConnections {
				err = fmt.Errorf("connections=%s: must be a whole number from 1 to %d", value, nbd.MaxConnections)
			}
		case "unflushed":
			i := slices.Index(unflushedNames, value)
			if i < 0 {
				err = fmt.Errorf("unflushed=%s: must be %s", value, OneOf(unflushedNames))
			}
			spec.NBD.Unflushed = nbd.Unflushed(i)
		case "reconnect-delay":
			if spec.NBD.Delay, err = time.ParseDuration(value); err != nil || spec.NBD.Delay < 0 {
				err = fmt.Errorf("reconnect-delay=%s: must be a time, such as 10s", value)
			}
		}
		if err != nil {
			return spec, fmt.Errorf("driver %s: %w", spec.Name, err)
		}
	}
	return spec, spec.check()
}

// parseFault reads the options of fault, and from lower=NAME on those of the driver below it.
func parseFault(fields []string) (Driver, error) {
	f := &Faults{}
	seen := map[string]bool{}
	for i, field := range fields {
		key, value, hasValue := strings.Cut(field, "=")
		if seen[key] && key != "rule" {
			return Driver{}, fmt.Errorf("driver fault: option %s is given twice", key)
		}
		seen[key] = true
		var err error
		switch key {
		case "rule":
			var r fault.Rule
			if r, err = fault.ParseRule(value); err == nil && r.Action == fault.Crash && !slices.ContainsFunc(fields, isCache) {
				err = fmt.Errorf("rule %q: a crash loses what the option cache=BYTES keeps, which is not given", value)
			}
			f.Rules = append(f.Rules, r)
		case "cache":
			if f.Cache, err = ParseSize(value); err == nil && f.Cache == 0 {
				err = fmt.Errorf("cache: size %q: must be more than 0", value)
			}
		case "no-cancel":
			f.NoCancel, err = parseSwitch(key, value, hasValue)
		case "lower":
			names := slices.DeleteFunc(slices.Clone(driverNames), func(n string) bool { return n == "fault" })
			spec, err := parseFields(append([]string{value}, fields[i+1:]...), names)
			if err != nil {
				return spec, fmt.Errorf("driver fault: lower: %w", err)
			}
			spec.Faults = f
			return spec, nil
		default:
			return Driver{}, fmt.Errorf("driver fault has no option %q; it has %s", key, strings.Join(faultOptions, ", "))
		}
		if err != nil {
			return Driver{}, fmt.Errorf("driver fault: %w", err)
		}
	}
	return Driver{}, fmt.Errorf("driver fault needs the option lower=NAME, and after it that driver's options")
}

// isCache tells whether a field is the option cache.
func isCache(field string) bool { return strings.HasPrefix(field, "cache=") }

// check tells what the driver needs and was not given.
func (d Driver) check() error {
	switch {
	case d.Name == "vnd" && d.File == "":
		return fmt.Errorf("driver vnd needs the option file=PATH")
	case d.Name == "md" && d.Size == 0 && d.File == "":
		return fmt.Errorf("driver md needs the option size=BYTES or file=PATH")
	case d.Name == "nbd" && d.NBD.URI == "":
		return fmt.Errorf("driver nbd needs the option uri=URI")
	case d.Name == "qemu" && d.File == "":
		return fmt.Errorf("driver qemu needs the option file=PATH")
	case d.Name == "qemu" && d.QEMU.DetectZeroes == "unmap" && d.NoDiscard:
		return fmt.Errorf("driver qemu: detect-zeroes=unmap discards, and no-discard forbids that")
	case d.Name == "null" && d.Size == 0:
		return fmt.Errorf("driver null needs the option size=BYTES")
	case d.Size%512 != 0:
		return fmt.Errorf("driver %s: size %d is not a multiple of 512", d.Name, d.Size)
	}
	return nil
}

// parseSwitch reads an option that is on when it is named without a value.
func parseSwitch(key, value string, hasValue bool) (bool, error) {
	switch {
	case !hasValue, value == "on":
		return true, nil
	case value == "off":
		return false, nil
	}
	return false, fmt.Errorf("%s=%s: must be on or off", key, value)
}

// splitOptions splits at single commas; a doubled one stands for a comma.
func splitOptions(s string) []string {
	fields := []string{""}
	for i := 0; i < len(s); i++ {
		if s[i] != ',' {
			fields[len(fields)-1] += s[i : i+1]
		} else if i+1 < len(s) && s[i+1] == ',' {
			fields[len(fields)-1] += ","
			i++
		} else {
			fields = append(fields, "")
		}
	}
	return fields
}

// QEMU has the options of the driver qemu.
type QEMU struct {
	Format       string // empty: by content
	Snapshot     bool
	DetectZeroes string
	Chain        qemunbd.Chain // empty: the default
	Program      string
}

// detectZeroes are the values of the option detect-zeroes.
var detectZeroes = []string{"off", "on", "unmap"}

// formatRE is what the name of a format looks like.
var formatRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

func parseFormat(s string) (string, error) {
	if !formatRE.MatchString(s) {
		return "", fmt.Errorf("format %q: must be one of QEMU's, such as qcow2, vmdk, vdi, vhdx or raw", s)
	}
	return s, nil
}

func parseChain(s string) (qemunbd.Chain, error) {
	if !slices.Contains(qemunbd.Chains, s) {
		return "", fmt.Errorf("backing-chain %q: must be %s", s, OneOf(qemunbd.Chains))
	}
	return qemunbd.Chain(s), nil
}
