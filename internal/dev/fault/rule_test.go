package fault

import (
	"errors"
	"strings"
	"testing"
	"time"

	"vdev/devsw"
)

// goodRules are rules and what they mean.
var goodRules = map[string]Rule{
	"delay:read+write:time=1ms-20ms:seed=7": {Action: Delay, Ops: Read | Write, Min: time.Millisecond, Max: 20 * time.Millisecond, Seed: 7},
	"delay:open:time=5s":                    {Action: Delay, Ops: Open, Min: 5 * time.Second, Max: 5 * time.Second},
	"delay:cancel+close:time=0s-1.5s":       {Action: Delay, Ops: Cancel | Close, Max: 1500 * time.Millisecond},
	"hang:write:blocks=0-7":                 {Action: Hang, Ops: Write, Blocks: 8},
	"hang:read:blocks=5:count=2":            {Action: Hang, Ops: Read, First: 5, Blocks: 1, Count: 2},
	"hang:flush:count=1:uncancellable":      {Action: Hang, Ops: Flush, Count: 1, Uncancellable: true},
	"error:read:prob=0.01:seed=42":          {Action: Error, Ops: Read, Prob: 0.01, Seed: 42},
	"error:write:errno=ENOSPC:skip=1000":    {Action: Error, Ops: Write, Errno: devsw.ENOSPC, Skip: 1000},
	"error:any:errno=7":                     {Action: Error, Ops: Any, Errno: 7},
	"error:cancel":                          {Action: Error, Ops: Cancel},
	"short:read:bytes=512":                  {Action: Short, Ops: Read, Bytes: 512},
	"short:read+write":                      {Action: Short, Ops: Read | Write},
	"crash:write:skip=99:count=1":           {Action: Crash, Ops: Write, Skip: 99, Count: 1, Keep: 0.5},
	"crash:flush:keep=0:off":                {Action: Crash, Ops: Flush, Off: true},
}

var badRules = map[string]string{
	"":                                     `action "": must be delay, hang, error, short or crash`,
	"break:read":                           `action "break"`,
	"delay":                                "an operation is missing",
	"delay:reads":                          `operation "reads": must be read, write, flush, discard, zeroes, open, close or cancel, or any`,
	"delay:read":                           "must be more than 0",
	"delay:read:time=0s":                   "must be more than 0",
	"delay:read:time=5":                    "time=5: must be a time such as 10ms",
	"delay:read:time=-1s":                  "must be a time",
	"delay:read:time=2s-1s":                "the smaller one first",
	"hang:read:time=1s":                    "hang takes no time",
	"hang:read:blocks=7-0":                 "blocks=7-0: must be a block of 512 bytes",
	"hang:read:blocks=-1":                  "blocks=-1: must be",
	"hang:read:blocks=0-":                  "must be a block",
	"hang:read:blocks=9223372036854775807": "must be a block",
	"hang:flush:blocks=0-7":                "flush has no blocks",
	"hang:read:count=0":                    "count=0: must be a whole number, 1 or more",
	"hang:read:count=1:count=2":            "count is given twice",
	"hang:read:skip=x":                     "skip=x: must be a whole number",
	"hang:read:bogus=1":                    `unknown key "bogus": must be blocks`,
	"hang:read:":                           `unknown key ""`,
	"hang:read:uncancellable=1":            "takes no value",
	"error:read:uncancellable":             "cannot be uncancellable",
	"error:read:prob=0":                    "prob=0: must be a number more than 0",
	"error:read:prob=NaN":                  "must be a number more than 0",
	"error:read:prob=2":                    "at most 1",
	"error:read:errno=EWHAT":               "errno=EWHAT: must be the name of an error",
	"error:read:errno=0":                   "must be the name of an error",
	"error:cancel:errno=EIO":               "cancel can answer ENODEV",
	"hang:read:errno=EIO":                  "hang has no errno",
	"short:flush":                          "flush cannot be short",
	"short:read:bytes=100":                 "must be a multiple of 512",
	"short:read:bytes=0":                   "must be a multiple of 512",
	"error:read:bytes=512":                 "error has no bytes",
	"crash:open":                           "open cannot crash",
	"crash:write:keep=NaN":                 "keep=NaN: must be 0 to 1",
	"crash:write:keep=1.1":                 "must be 0 to 1",
	"hang:write:off":                       "hang has no keep and no off",
	"hang:" + strings.Repeat("x", 2000):    "is longer than 1024 bytes",
}

func TestRulesAreReadAndWritten(t *testing.T) {
	for s, want := range goodRules {
		got, err := ParseRule(s)
		if err != nil || got != want {
			t.Errorf("%q is %+v, %v; want %+v", s, got, err, want)
		}
		if again, err := ParseRule(got.String()); err != nil || again != got {
			t.Errorf("%q was written as %q, which is %+v, %v", s, got, again, err)
		}
	}
}

func TestBadRulesAreRefusedWithTheCause(t *testing.T) {
	for s, want := range badRules {
		_, err := ParseRule(s)
		if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, devsw.EINVAL) {
			t.Errorf("%q: %v; want an EINVAL that says %q", s, err, want)
		}
		if err != nil && len(err.Error()) > 500 {
			t.Errorf("the error has %d bytes", len(err.Error()))
		}
	}
}

func TestARuleThatWasNotParsedIsCheckedToo(t *testing.T) {
	r := opened(t, mdName)
	defer r.close()
	for _, bad := range []Rule{
		{}, {Action: 9, Ops: Read}, {Action: Error}, {Action: Error, Ops: 1 << 12}, {Action: Hang, Ops: Read, First: 1},
		{Action: Hang, Ops: Read, First: 1 << 62, Blocks: 1 << 62}, {Action: Error, Ops: Read, Prob: -1},
		{Action: Crash, Ops: Write}, // there is no cache
	} {
		is(t, bad.String(), r.node.Ioctl(FAULTSET, &bad, rw), devsw.EINVAL)
	}
	if s := r.state(); len(s.Rules) != 0 {
		t.Errorf("%+v are in force", s.Rules)
	}
}

func FuzzParseRule(f *testing.F) {
	for s := range goodRules {
		f.Add(s)
	}
	for s := range badRules {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			if !errors.Is(err, devsw.EINVAL) {
				t.Fatalf("%q: %v, which is no EINVAL", s, err)
			}
			return
		}
		if err := r.Check(); err != nil {
			t.Fatalf("%q was read, and is wrong: %v", s, err)
		}
		again, err := ParseRule(r.String())
		if err != nil || again != r {
			t.Fatalf("%q was read as %+v, written as %q and read as %+v, %v", s, r, r, again, err)
		}
		// Whatever it is, it acts without a panic.
		state := ruleState{Rule: r, rng: generator(r.Seed)}
		for op := Ops(1); op < allOps; op <<= 1 {
			var v verdict
			if state.match(op, 0, 4096) && !state.end(&v, op, 4096, 512) {
				continue
			}
			if state.delay() < 0 || v.bytes < 0 || v.bytes > 4096 {
				t.Fatalf("%q: %+v", s, v)
			}
		}
	})
}
