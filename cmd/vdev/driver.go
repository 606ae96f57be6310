package main

import (
	"fmt"
	"slices"
	"strings"
)

// driverSpec says which driver serves the disk, and with what. It is what --driver and --blk-file come to.
type driverSpec struct {
	name      string // of the device switch: "md", "vnd" or "null"
	file      string // the image, or what a memory disk is filled with
	size      int64  // bytes; 0 where the file says it
	readOnly  bool
	direct    bool // O_DIRECT
	noDiscard bool
}

// driverOptions names the options that each driver takes.
var driverOptions = map[string][]string{
	"md":   {"size", "file", "read-only"},
	"vnd":  {"file", "read-only", "direct", "no-discard"},
	"null": {"size", "read-only"},
}

// driverNames is the order in which help and errors list the drivers.
var driverNames = []string{"vnd", "md", "null"}

// parseDriver reads a driver with its options: NAME[,option[=value]]..., where a comma that belongs to a value is
// written twice, as on QEMU's command line.
func parseDriver(s string) (driverSpec, error) {
	fields := splitOptions(s)
	spec := driverSpec{name: fields[0]}
	options, ok := driverOptions[spec.name]
	if !ok {
		return spec, fmt.Errorf("driver %q: must be %s", spec.name, oneOf(driverNames))
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
		case "no-discard":
			spec.noDiscard, err = parseSwitch(key, value, hasValue)
		}
		if err != nil {
			return spec, fmt.Errorf("driver %s: %w", spec.name, err)
		}
	}
	return spec, spec.check()
}

// check tells what the driver needs and was not given.
func (d driverSpec) check() error {
	switch {
	case d.name == "vnd" && d.file == "":
		return fmt.Errorf("driver vnd needs the option file=PATH")
	case d.name == "md" && d.size == 0 && d.file == "":
		return fmt.Errorf("driver md needs the option size=BYTES or file=PATH")
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
