package vhostuser

import (
	"fmt"
	"strings"
	"testing"
)

// TestThePolicyOfAStop spells out what every stop does. The columns are those of the head: a dash
// is for no in-flight region, and then for each region whether it stays with this front-end or
// travels with the guest.
//
//	w  what is in flight may complete, for CancelAfter; without it, it is cancelled at once
//	r  the device is revoked
//	s  what comes back cancelled is suspended; without it, it completes with an error
func TestThePolicyOfAStop(t *testing.T) {
	const table = `
reason      guest        front-end  no-region  no-region,bit-20  stays  travels
base        migratable   waits      w          w                 w      s
base        migratable   gone       -          -                 s      s
base        stays-here   waits      w          w                 ws     s
base        stays-here   gone       -          -                 s      s
disable     migratable   waits      w          w                 w      s
disable     migratable   gone       -          -                 s      s
disable     stays-here   waits      w          w                 ws     s
disable     stays-here   gone       -          -                 s      s
reset       migratable   waits      r          r                 r      r
reset       migratable   gone       r          r                 r      r
reset       stays-here   waits      r          r                 r      r
reset       stays-here   gone       r          r                 r      r
disconnect  migratable   waits      r          r                 rs     rs
disconnect  migratable   gone       r          r                 rs     rs
disconnect  stays-here   waits      r          r                 rs     rs
disconnect  stays-here   gone       r          r                 rs     rs
`
	lines := strings.Split(strings.TrimSpace(table), "\n")
	columns := strings.Fields(lines[0])[3:]
	want := make(map[string]string)
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		for i, column := range columns {
			want[strings.Join(append(f[:3:3], column), " ")] = f[3+i]
		}
	}
	seen := 0
	for _, reason := range []StopReason{StopBase, StopDisable, StopReset, StopDisconnect} {
		for bits := range 16 {
			migratable, hungUp, region, travels := bits&1 != 0, bits&2 != 0, bits&4 != 0, bits&8 != 0
			pick := func(is bool, yes, no string) string {
				if is {
					return yes
				}
				return no
			}
			column := pick(region, pick(travels, "travels", "stays"), pick(travels, "no-region,bit-20", "no-region"))
			row := fmt.Sprintf("%v %s %s %s", reason, pick(migratable, "migratable", "stays-here"), pick(hungUp, "gone", "waits"), column)
			d := policy(reason, region, travels, migratable, hungUp)
			got := pick(d.wait, "w", "") + pick(d.revoke, "r", "") + pick(d.suspend, "s", "")
			if got == "" {
				got = "-"
			}
			if w, ok := want[row]; !ok || w != got {
				t.Errorf("%s: %s, want %s", row, got, w)
			}
			seen++
		}
	}
	if seen != len(want) || seen != 64 {
		t.Errorf("%d combinations were tried, the table has %d", seen, len(want))
	}
}
