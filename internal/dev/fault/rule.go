package fault

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"vdev/devsw"
)

// Action is what a rule does.
type Action uint8

// The actions.
const (
	Delay Action = iota + 1
	Hang
	Error
	Short
	Crash
)

var actionNames = []string{Delay: "delay", Hang: "hang", Error: "error", Short: "short", Crash: "crash"}

// String gives the action's name.
func (a Action) String() string {
	if a < Delay || a > Crash {
		return fmt.Sprintf("action %d", uint8(a))
	}
	return actionNames[a]
}

// Ops is a set of kinds of operations.
type Ops uint16

// The kinds of operations. Zeroes is DIOCWRITEZEROES, Flush is DIOCCACHESYNC.
const (
	Read Ops = 1 << iota
	Write
	Flush
	Discard
	Zeroes
	Open
	Close
	Cancel

	// Any is all that the user of an open device does.
	Any = Read | Write | Flush | Discard | Zeroes

	placed  = Read | Write | Discard | Zeroes // those with a place on the disk
	allOps  = Any | Open | Close | Cancel
	nOps    = 8
	anyName = "any"
)

var opNames = [nOps]string{"read", "write", "flush", "discard", "zeroes", "open", "close", "cancel"}

// String gives the names, with plus signs between them.
func (o Ops) String() string {
	var names []string
	for rest := o & allOps; rest != 0; rest &= rest - 1 {
		names = append(names, opNames[rest.index()])
	}
	return strings.Join(names, "+")
}

// index is the number of the lowest operation of a set that is not empty.
func (o Ops) index() int { return bits.TrailingZeros16(uint16(o)) }

// Rule is a fault and when it comes. See the package's comment.
type Rule struct {
	// ID is the rule's name, not 0. FAULTSET chooses it.
	ID int

	Action Action
	Ops    Ops

	// Where: it matches an operation that touches one of Blocks blocks, of devsw.DEVBSIZE bytes,
	// from First on. Blocks 0 is anywhere.
	First, Blocks int64

	// When: the first Skip operations that match are let by, then Count of them, at most, are hit;
	// Count 0 is no limit.
	Skip, Count uint64
	// Prob is the probability of each of those to be hit. 0 is always, as is 1.
	Prob float64
	// Seed is what everything random of this rule starts from.
	Seed uint64

	Min, Max      time.Duration // Delay: how long, chosen from Min to Max with the same probability
	Uncancellable bool          // Delay, Hang: d_cancel does not end it
	Errno         devsw.Errno   // Error: 0 is EIO, for Cancel always ENODEV
	// Short: how much is transferred, a multiple of 512; 0 is random, and less than all
	Bytes int64
	Keep  float64 // Crash: see Outage
	Off   bool    // Crash: see Outage
}

// Reason is the text of an error of Check or ParseRule without the words of EINVAL behind it, which
// say less than what stands before.
func Reason(err error) string { return strings.TrimSuffix(err.Error(), ": "+devsw.EINVAL.Error()) }

// Check looks whether the rule makes sense: an error that wraps EINVAL where it does not.
func (r Rule) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, devsw.EINVAL)...)
	}
	switch {
	case r.Action < Delay || r.Action > Crash:
		return bad("there is no %v", r.Action)
	case r.Ops == 0:
		return bad("%v: of which operation?", r.Action)
	case r.Ops&^allOps != 0:
		return bad("there are no operations %#x", uint16(r.Ops&^allOps))
	case r.First < 0 || r.Blocks < 0 || r.First+r.Blocks < r.First || r.Blocks == 0 && r.First != 0:
		return bad("blocks %d, %d of them: there are no such blocks", r.First, r.Blocks)
	case r.Blocks != 0 && r.Ops&^placed != 0:
		return bad("%v has no blocks", r.Ops&^placed)
	case !(r.Prob >= 0 && r.Prob <= 1):
		return bad("prob=%v: must be more than 0, and at most 1", r.Prob)
	case r.Action == Delay && (r.Min < 0 || r.Max < r.Min || r.Max == 0):
		return bad("delay from %v to %v: must be more than 0, and the smaller one first", r.Min, r.Max)
	case r.Action != Delay && (r.Min != 0 || r.Max != 0):
		return bad("%v takes no time", r.Action)
	case r.Action > Hang && r.Uncancellable:
		return bad("%v cannot be uncancellable: it is over at once", r.Action)
	case r.Action != Error && r.Errno != 0:
		return bad("%v has no errno", r.Action)
	case r.Action == Error && r.Ops&Cancel != 0 && r.Errno != 0 && r.Errno != devsw.ENODEV:
		return bad("errno=%s: cancel can answer ENODEV, and no other error", errnoName(r.Errno))
	case r.Action == Short && r.Ops&^(Read|Write) != 0:
		return bad("%v cannot be short", r.Ops&^(Read|Write))
	case r.Action != Short && r.Bytes != 0:
		return bad("%v has no bytes", r.Action)
	case r.Bytes < 0 || r.Bytes%devsw.DEVBSIZE != 0:
		return bad("bytes=%d: must be a multiple of 512, and more than 0", r.Bytes)
	case r.Action == Crash && r.Ops&^Any != 0:
		return bad("%v cannot crash", r.Ops&^Any)
	case r.Action != Crash && (r.Keep != 0 || r.Off):
		return bad("%v has no keep and no off", r.Action)
	case !(r.Keep >= 0 && r.Keep <= 1):
		return bad("keep=%v: must be 0 to 1", r.Keep)
	}
	return nil
}

// String gives the rule in the form that ParseRule reads. The ID is not in it.
func (r Rule) String() string {
	s := r.Action.String() + ":" + r.Ops.String()
	add := func(on bool, format string, args ...any) {
		if on {
			s += ":" + fmt.Sprintf(format, args...)
		}
	}
	add(r.Blocks == 1, "blocks=%d", r.First)
	add(r.Blocks > 1, "blocks=%d-%d", r.First, r.First+r.Blocks-1)
	add(r.Skip != 0, "skip=%d", r.Skip)
	add(r.Count != 0, "count=%d", r.Count)
	add(r.Prob != 0, "prob=%v", r.Prob)
	add(r.Seed != 0, "seed=%d", r.Seed)
	add(r.Max != 0 && r.Min == r.Max, "time=%v", r.Min)
	add(r.Min != r.Max, "time=%v-%v", r.Min, r.Max)
	add(r.Errno != 0, "errno=%s", errnoName(r.Errno))
	add(r.Bytes != 0, "bytes=%d", r.Bytes)
	add(r.Action == Crash, "keep=%v", r.Keep)
	add(r.Off, "off")
	add(r.Uncancellable, "uncancellable")
	return s
}

// defaultKeep is the Keep of a crash whose text has none.
const defaultKeep = 0.5

// rulesMaxLen bounds the text of a rule in bytes; a longer one is none.
const ruleMaxLen = 1 << 10

// ParseRule reads a rule: ACTION:OP[+OP]...[:key=value]...
//
//	delay:read+write:time=1ms-20ms:seed=7     a random time within bounds
//	delay:open:time=5s                        a fixed one
//	hang:write:blocks=0-7                     at these blocks of 512 bytes
//	hang:flush:count=1:uncancellable          the next one; d_cancel does not end it
//	error:read:prob=0.01:seed=42              one in a hundred, EIO
//	error:write:errno=ENOSPC:skip=1000        from the 1001st on
//	error:cancel                              d_cancel answers ENODEV
//	short:read:bytes=512                      no more than 512 bytes; without bytes, some
//	crash:write:skip=99:count=1:keep=0.5:off  at the 100th, with half of the cache; then all fails
//
// "any" stands for read+write+flush+discard+zeroes. Errors name what is wrong and wrap EINVAL.
func ParseRule(s string) (Rule, error) {
	r, err := parseRule(s)
	if err == nil {
		err = r.Check()
	} else {
		err = fmt.Errorf("%w: %w", err, devsw.EINVAL)
	}
	if err != nil {
		if len(s) > ruleMaxLen {
			s = s[:20] + "..."
		}
		return Rule{}, fmt.Errorf("rule %q: %w", s, err)
	}
	return r, nil
}

func parseRule(s string) (r Rule, err error) {
	if len(s) > ruleMaxLen {
		return r, fmt.Errorf("is longer than %d bytes", ruleMaxLen)
	}
	fields := strings.Split(s, ":")
	action := slices.Index(actionNames, fields[0])
	if action < int(Delay) {
		return r, fmt.Errorf("action %q: must be %s", fields[0], oneOf(actionNames[Delay:]))
	}
	r.Action = Action(action)
	if r.Action == Crash {
		r.Keep = defaultKeep
	}
	if len(fields) < 2 {
		return r, fmt.Errorf("an operation is missing: %s, or %s", oneOf(opNames[:]), anyName)
	}
	for _, name := range strings.Split(fields[1], "+") {
		i := slices.Index(opNames[:], name)
		switch {
		case name == anyName:
			r.Ops |= Any
		case i < 0:
			return r, fmt.Errorf("operation %q: must be %s, or %s", name, oneOf(opNames[:]), anyName)
		default:
			r.Ops |= 1 << i
		}
	}
	seen := map[string]bool{}
	for _, field := range fields[2:] {
		key, value, _ := strings.Cut(field, "=")
		if seen[key] {
			return r, fmt.Errorf("%s is given twice", key)
		}
		seen[key] = true
		if err := r.set(key, value, field == key); err != nil {
			return r, err
		}
	}
	return r, nil
}

// set sets what key stands for. bare: there was no value.
func (r *Rule) set(key, value string, bare bool) (err error) {
	switch key {
	case "uncancellable", "off":
		if !bare {
			return fmt.Errorf("%s takes no value", key)
		}
		if key == "off" {
			r.Off = true
		} else {
			r.Uncancellable = true
		}
		return nil
	case "blocks":
		err = r.setBlocks(value)
	case "skip":
		r.Skip, err = strconv.ParseUint(value, 10, 64)
	case "count":
		if r.Count, err = strconv.ParseUint(value, 10, 64); err == nil && r.Count == 0 {
			err = errors.New("0")
		}
	case "seed":
		r.Seed, err = strconv.ParseUint(value, 10, 64)
	case "bytes":
		if r.Bytes, err = strconv.ParseInt(value, 10, 64); err == nil && r.Bytes <= 0 {
			err = errors.New("0")
		}
	case "prob":
		if r.Prob, err = strconv.ParseFloat(value, 64); err == nil && !(r.Prob > 0) {
			err = errors.New("0")
		}
	case "keep":
		if r.Keep, err = strconv.ParseFloat(value, 64); err == nil && r.Keep == 0 {
			r.Keep = 0 // and not -0
		}
	case "time":
		err = r.setTime(value)
	case "errno":
		r.Errno, err = parseErrno(value)
	default:
		return fmt.Errorf("unknown key %q: must be %s", key, oneOf(ruleKeys))
	}
	if err != nil {
		return fmt.Errorf("%s=%s: must be %s", key, value, wants[key])
	}
	return nil
}

var ruleKeys = []string{"blocks", "skip", "count", "prob", "seed", "time", "errno", "bytes", "keep", "off", "uncancellable"}

// wants says for each key what its value must be.
var wants = map[string]string{
	"blocks": "a block of 512 bytes, or the first and the last of several, such as 0-7",
	"skip":   "a whole number",
	"count":  "a whole number, 1 or more",
	"seed":   "a whole number",
	"bytes":  "a multiple of 512, and more than 0",
	"prob":   "a number more than 0 and at most 1",
	"keep":   "a number from 0 to 1",
	"time":   "a time such as 10ms, or the least and the most, such as 1ms-20ms",
	"errno":  "the name of an error, such as EIO or ENOSPC",
}

func (r *Rule) setBlocks(s string) error {
	first, last, several := strings.Cut(s, "-")
	lo, err := strconv.ParseInt(first, 10, 64)
	hi := lo
	if several && err == nil {
		hi, err = strconv.ParseInt(last, 10, 64)
	}
	switch {
	case err != nil:
		return err
	case lo < 0 || hi < lo || hi+1 < 0:
		return devsw.ERANGE
	}
	r.First, r.Blocks = lo, hi-lo+1
	return nil
}

func (r *Rule) setTime(s string) (err error) {
	least, most, several := strings.Cut(s, "-")
	if r.Min, err = time.ParseDuration(least); err != nil {
		return err
	}
	r.Max = r.Min
	if several {
		r.Max, err = time.ParseDuration(most)
	}
	return err
}

// errnos are the errors that rules know by name.
var errnos = map[string]devsw.Errno{
	"EPERM": devsw.EPERM, "ENOENT": devsw.ENOENT, "EINTR": devsw.EINTR, "EIO": devsw.EIO, "ENXIO": devsw.ENXIO,
	"EBADF": devsw.EBADF, "EAGAIN": devsw.EAGAIN, "ENOMEM": devsw.ENOMEM, "EACCES": devsw.EACCES, "EFAULT": devsw.EFAULT,
	"EBUSY": devsw.EBUSY, "EEXIST": devsw.EEXIST, "ENODEV": devsw.ENODEV, "EINVAL": devsw.EINVAL, "ENOTTY": devsw.ENOTTY,
	"EFBIG": devsw.EFBIG, "ENOSPC": devsw.ENOSPC, "EROFS": devsw.EROFS, "ERANGE": devsw.ERANGE, "ETIMEDOUT": devsw.ETIMEDOUT,
	"ECANCELED": devsw.ECANCELED, "EOPNOTSUPP": devsw.EOPNOTSUPP,
}

func parseErrno(s string) (devsw.Errno, error) {
	if e, ok := errnos[s]; ok {
		return e, nil
	}
	n, err := strconv.ParseUint(s, 10, 12)
	return devsw.Errno(n), cmp.Or(err, errIf(n == 0))
}

func errIf(bad bool) error {
	if bad {
		return devsw.EINVAL
	}
	return nil
}

// errnoName gives an error's name, or its number where it has none here.
func errnoName(e devsw.Errno) string {
	for name, known := range errnos {
		if known == e {
			return name
		}
	}
	return strconv.Itoa(int(e))
}

// oneOf lists words that one can choose from: "a, b or c".
func oneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
