package main

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The types in this file are pflag.Values: flags whose errors say what would have been right.

// number is a whole number within bounds.
type number struct {
	value    int
	min, max int
}

func (n *number) String() string { return strconv.Itoa(n.value) }
func (n *number) Type() string   { return "N" }

func (n *number) Set(s string) error {
	v, err := strconv.Atoi(s)
	if err != nil || v < n.min || v > n.max {
		if n.max == math.MaxInt {
			return fmt.Errorf("must be a whole number, %d or more", n.min)
		}
		return fmt.Errorf("must be a whole number from %d to %d", n.min, n.max)
	}
	n.value = v
	return nil
}

// choice is one of a few words.
type choice struct {
	value string
	of    []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.of, "|") }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.of, s) {
		return fmt.Errorf("must be %s", oneOf(c.of))
	}
	c.value = s
	return nil
}

// oneOf lists words that one can choose from: "a, b or c".
func oneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// serialMax is the longest serial number in bytes: VIRTIO_BLK_ID_BYTES, which need no terminating zero when they
// are all used (virtio 1.3, section 5.2.6).
const serialMax = 20

// serial is the disk's serial number, as a guest reads it with VIRTIO_BLK_T_GET_ID.
type serial string

func (s *serial) String() string { return string(*s) }
func (s *serial) Type() string   { return "TEXT" }

func (s *serial) Set(v string) error {
	if len(v) > serialMax {
		return fmt.Errorf("is %d bytes long, and a serial number has at most %d", len(v), serialMax)
	}
	for _, c := range []byte(v) {
		if c < ' ' || c > '~' {
			return fmt.Errorf("has the byte %#02x in it; a serial number is printable ASCII", c)
		}
	}
	*s = serial(v)
	return nil
}

// sizeForm is a size: digits, perhaps a fraction, perhaps a unit.
var sizeForm = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)(?:([KMGTPE])I?)?B?$`)

// parseSize reads a size in bytes, such as 4096, 64K, 1.5G or 2TiB. The units are powers of 1024.
func parseSize(s string) (int64, error) {
	m := sizeForm.FindStringSubmatch(strings.ToUpper(s))
	if m == nil {
		return 0, fmt.Errorf("size %q: must be a number of bytes, such as 512M or 10G", s)
	}
	bytes, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return 0, fmt.Errorf("size %q: must be a number of bytes, such as 512M or 10G", s)
	}
	if m[2] != "" {
		unit := int64(1) << (10 * (1 + strings.Index("KMGTPE", m[2])))
		bytes.Mul(bytes, new(big.Rat).SetInt64(unit))
	}
	switch {
	case !bytes.IsInt():
		return 0, fmt.Errorf("size %q: is not a whole number of bytes", s)
	case !bytes.Num().IsInt64():
		return 0, fmt.Errorf("size %q: is more than a disk can have", s)
	}
	return bytes.Num().Int64(), nil
}

// sizeText writes a size as parseSize reads it, with the largest unit of which it is a multiple.
func sizeText(bytes int64) string {
	unit := ""
	for _, u := range []string{"K", "M", "G", "T"} {
		if bytes == 0 || bytes%1024 != 0 {
			break
		}
		bytes, unit = bytes/1024, u
	}
	return strconv.FormatInt(bytes, 10) + unit
}

// several is a list with commas: values of one kind, each once.
type several[T comparable] struct {
	values []T
	parse  func(string) (T, error)
	text   func(T) string
	kind   string // what one of them is called in help
}

func (l *several[T]) Type() string { return l.kind + ",..." }

func (l *several[T]) String() string {
	var words []string
	for _, v := range l.values {
		words = append(words, l.text(v))
	}
	return strings.Join(words, ",")
}

func (l *several[T]) Set(s string) error {
	var values []T
	for word := range strings.SplitSeq(s, ",") {
		v, err := l.parse(word)
		if err != nil {
			return fmt.Errorf("%q %w", word, err)
		}
		if slices.Contains(values, v) {
			return fmt.Errorf("%q is given twice", word)
		}
		values = append(values, v)
	}
	l.values = values
	return nil
}

// severalNumbers is a list of whole numbers within bounds.
func severalNumbers(min, max int, values ...int) several[int] {
	return several[int]{values: values, text: strconv.Itoa, kind: "N", parse: func(s string) (int, error) {
		n := number{min: min, max: max}
		err := n.Set(s)
		return n.value, err
	}}
}

// severalChoices is a list of some of a few words.
func severalChoices(of []string, values ...string) several[string] {
	return several[string]{values: values, text: func(s string) string { return s }, kind: "NAME",
		parse: func(s string) (string, error) { return s, (&choice{of: of}).Set(s) }}
}

// cpuList is a list of processors, as the kernel writes them: 0-3,8.
type cpuList []int

func (l *cpuList) Type() string { return "LIST" }

func (l *cpuList) String() string {
	var words []string
	for _, cpu := range *l {
		words = append(words, strconv.Itoa(cpu))
	}
	return strings.Join(words, ",")
}

func (l *cpuList) Set(s string) error {
	const most = 8192 // no kernel has more
	var cpus cpuList
	for word := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(word, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 64)
		last, err2 := strconv.ParseUint(to, 10, 64)
		if err1 != nil || err2 != nil || first > last || last >= most {
			return fmt.Errorf("%q must be a processor's number, or a range of them, such as 0-3", word)
		}
		for cpu := first; cpu <= last; cpu++ {
			cpus = append(cpus, int(cpu))
		}
	}
	*l = cpus
	return nil
}
