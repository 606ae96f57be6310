package spec

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Number is a pflag.Value: a whole number within bounds. Its errors say what would be right, as
// those of the other values do.
type Number struct {
	Value    int
	Min, Max int
}

func (n *Number) String() string { return strconv.Itoa(n.Value) }
func (n *Number) Type() string   { return "N" }

func (n *Number) Set(s string) error {
	v, err := strconv.Atoi(s)
	if err != nil || v < n.Min || v > n.Max {
		if n.Max == math.MaxInt {
			return fmt.Errorf("must be a whole number, %d or more", n.Min)
		}
		return fmt.Errorf("must be a whole number from %d to %d", n.Min, n.Max)
	}
	n.Value = v
	return nil
}

// Choice is a pflag.Value: one of a few words.
type Choice struct {
	Value string
	Of    []string
}

func (c *Choice) String() string { return c.Value }
func (c *Choice) Type() string   { return strings.Join(c.Of, "|") }

func (c *Choice) Set(s string) error {
	if !slices.Contains(c.Of, s) {
		return fmt.Errorf("must be %s", OneOf(c.Of))
	}
	c.Value = s
	return nil
}

// OneOf lists words that one can choose from: "a, b or c".
func OneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// serialMax is the longest serial number in bytes: VIRTIO_BLK_ID_BYTES, which need no terminating
// zero when they are all used (virtio 1.3, section 5.2.6).
const serialMax = 20

// serial is the disk's serial number, as a guest reads it with VIRTIO_BLK_T_GET_ID.
type serial string

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

// ParseSize reads a size in bytes, such as 4096, 64K, 1.5G or 2TiB. The units are powers of 1024.
func ParseSize(s string) (int64, error) {
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

// SizeText writes a size as ParseSize reads it, with the largest unit of which it is a multiple.
func SizeText(bytes int64) string {
	unit := ""
	for _, u := range []string{"K", "M", "G", "T"} {
		if bytes == 0 || bytes%1024 != 0 {
			break
		}
		bytes, unit = bytes/1024, u
	}
	return strconv.FormatInt(bytes, 10) + unit
}

func (s *serial) String() string { return string(*s) }
func (s *serial) Type() string   { return "TEXT" }
