package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"vdev/internal/dev/disk"
	"vdev/internal/dev/fault"
	"vdev/internal/dev/nbd"
)

// driverSpec says which driver serves the disk, and with what. It is what --driver and --blk-file come to.
type driverSpec struct {
	name      string // "md", "vnd", "nbd", "qemu" or "null"; faults may stand on it
	detect    bool   // the file alone was named: settle decides on the driver
	file      string // the image, or what a memory disk is filled with
	size      int64  // bytes; 0 where the file says it
	readOnly  bool
	direct    bool // O_DIRECT
	bounce    bool // transfers are copied
	noDiscard bool
	nbd       nbdSpec
	qemu      qemuSpec
	faults    *faultSpec // what stands on it, or nil

	failures *disk.Failures // which images have lost writes; all disks share it
}

// nbdSpec is what the driver nbd was given beside.
type nbdSpec struct {
	uri         string
	connections int // 0: chosen
	delay       time.Duration
	unflushed   nbd.Unflushed
}

// unflushedNames are the values of the option unflushed, by nbd.Unflushed.
var unflushedNames = []string{"auto", "lost", "kept"}

// faultSpec is what the driver fault, which stands on another one, was given.
type faultSpec struct {
	rules    []fault.Rule
	cache    int64 // bytes
	noCancel bool
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

// parseDriver reads a driver with its options: NAME[,option[=value]]..., where a comma that belongs to a value is
// written twice, as on QEMU's command line.
func parseDriver(s string) (driverSpec, error) {
	fields := splitOptions(s)
	if fields[0] == "fault" {
		return parseFault(fields[1:])
	}
	return parseFields(fields, driverNames)
}

// parseFields reads the name of a driver and its options. names are those it may be chosen from.
func parseFields(fields, names []string) (driverSpec, error) {
	spec := driverSpec{name: fields[0]}
	options, ok := driverOptions[spec.name]
	if !ok {
		return spec, fmt.Errorf("driver %q: must be %s", spec.name, oneOf(names))
	}
	seen := map[string]bool{}
	for _, field := range fields[1:] {
		key, value, hasValue := strings.Cut(field, "=")
		if !slices.Contains(options, key) {
			return spec, fmt.Errorf("driver %s has no option %q; it has %s", spec.name, key, strings.Join(options, ", "))
		}
		if seen[key] {
			return spec, fmt.Errorf("driver %s: option %s is given twice", spec.name, key)
		}
		seen[key] = true
		var err error
		switch key {
		case "size":
			if spec.size, err = parseSize(value); err == nil && spec.size == 0 {
				err = fmt.Errorf("size %q: must be more than 0", value)
			}
		case "file":
			if spec.file = value; value == "" {
				err = fmt.Errorf("file: a path is missing")
			}
		case "read-only":
			spec.readOnly, err = parseSwitch(key, value, hasValue)
		case "direct":
			spec.direct, err = parseSwitch(key, value, hasValue)
		case "bounce":
			spec.bounce, err = parseSwitch(key, value, hasValue)
		case "no-discard":
			spec.noDiscard, err = parseSwitch(key, value, hasValue)
		case "format":
			spec.qemu.format, err = parseFormat(value)
		case "snapshot":
			spec.qemu.snapshot, err = parseSwitch(key, value, hasValue)
		case "detect-zeroes":
			if spec.qemu.detectZeroes = value; !slices.Contains(detectZeroes, value) {
				err = fmt.Errorf("detect-zeroes=%s: must be %s", value, oneOf(detectZeroes))
			}
		case "backing-chain":
			spec.qemu.chain, err = parseChain(value)
		case "program":
			if spec.qemu.program = value; value == "" {
				err = fmt.Errorf("program: a path is missing")
			}
		case "uri":
			spec.nbd.uri = value
		case "connections":
			if spec.nbd.connections, err = strconv.Atoi(value); err != nil || spec.nbd.connections < 1 || spec.nbd.connections > nbd.MaxConnections {
				err = fmt.Errorf("connections=%s: must be a whole number from 1 to %d", value, nbd.MaxConnections)
			}
		case "unflushed":
			i := slices.Index(unflushedNames, value)
			if i < 0 {
				err = fmt.Errorf("unflushed=%s: must be %s", value, oneOf(unflushedNames))
			}
			spec.nbd.unflushed = nbd.Unflushed(i)
		case "reconnect-delay":
			if spec.nbd.delay, err = time.ParseDuration(value); err != nil || spec.nbd.delay < 0 {
				err = fmt.Errorf("reconnect-delay=%s: must be a time, such as 10s", value)
			}
		}
		if err != nil {
			return spec, fmt.Errorf("driver %s: %w", spec.name, err)
		}
	}
	return spec, spec.check()
}

// parseFault reads the options of fault, and from lower=NAME on those of the driver below it.
func parseFault(fields []string) (driverSpec, error) {
	f := &faultSpec{}
	seen := map[string]bool{}
	for i, field := range fields {
		key, value, hasValue := strings.Cut(field, "=")
		if seen[key] && key != "rule" {
			return driverSpec{}, fmt.Errorf("driver fault: option %s is given twice", key)
		}
		seen[key] = true
		var err error
		switch key {
		case "rule":
			var r fault.Rule
			if r, err = fault.ParseRule(value); err == nil && r.Action == fault.Crash && !slices.ContainsFunc(fields, isCache) {
				err = fmt.Errorf("rule %q: a crash loses what the option cache=BYTES keeps, which is not given", value)
			}
			f.rules = append(f.rules, r)
		case "cache":
			if f.cache, err = parseSize(value); err == nil && f.cache == 0 {
				err = fmt.Errorf("cache: size %q: must be more than 0", value)
			}
		case "no-cancel":
			f.noCancel, err = parseSwitch(key, value, hasValue)
		case "lower":
			names := slices.DeleteFunc(slices.Clone(driverNames), func(n string) bool { return n == "fault" })
			spec, err := parseFields(append([]string{value}, fields[i+1:]...), names)
			if err != nil {
				return spec, fmt.Errorf("driver fault: lower: %w", err)
			}
			spec.faults = f
			return spec, nil
		default:
			return driverSpec{}, fmt.Errorf("driver fault has no option %q; it has %s", key, strings.Join(faultOptions, ", "))
		}
		if err != nil {
			return driverSpec{}, fmt.Errorf("driver fault: %w", err)
		}
	}
	return driverSpec{}, fmt.Errorf("driver fault needs the option lower=NAME, and after it that driver's options")
}

// isCache tells whether a field is the option cache.
func isCache(field string) bool { return strings.HasPrefix(field, "cache=") }

// check tells what the driver needs and was not given.
func (d driverSpec) check() error {
	switch {
	case d.name == "vnd" && d.file == "":
		return fmt.Errorf("driver vnd needs the option file=PATH")
	case d.name == "md" && d.size == 0 && d.file == "":
		return fmt.Errorf("driver md needs the option size=BYTES or file=PATH")
	case d.name == "nbd" && d.nbd.uri == "":
		return fmt.Errorf("driver nbd needs the option uri=URI")
	case d.name == "qemu" && d.file == "":
		return fmt.Errorf("driver qemu needs the option file=PATH")
	case d.name == "qemu" && d.qemu.detectZeroes == "unmap" && d.noDiscard:
		return fmt.Errorf("driver qemu: detect-zeroes=unmap gives back space, and no-discard does not")
	case d.name == "null" && d.size == 0:
		return fmt.Errorf("driver null needs the option size=BYTES")
	case d.size%512 != 0:
		return fmt.Errorf("driver %s: size %d is not a multiple of 512", d.name, d.size)
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
