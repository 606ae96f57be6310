package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"vdev/internal/bench/load"
)

// bar is a figure that must be reached.
type bar struct {
	What, Needed, Measured string
	Met                    bool
	Unsure                 bool // whether the true figure is so, too
	Disturbed              bool // so that it is neither met nor missed
}

// idleBar is how much of a core an idle back-end may use in idleTime.
const idleBar = 10 * time.Millisecond

// check is one comparison of vdev with another, that of one depth.
type check struct {
	depth int
	got   comparison // vdev's figure divided by the other's
	seen  disturbance
	limit float64
	least bool // got must be at least limit; else at most
	who   string
}

func (c *check) met() bool { return c.meets(c.got.Median) }

// unsure tells whether the limit lies within the interval.
func (c *check) unsure() bool { return c.meets(c.got.Low) != c.meets(c.got.High) }

func (c *check) meets(figure float64) bool {
	if c.least {
		return figure >= c.limit
	}
	return figure <= c.limit
}

func (c *check) String() string {
	s := fmt.Sprintf("%v at depth %d", c.got, c.depth)
	if c.who != "" {
		s += " against " + c.who
	}
	return s + c.seen.mark()
}

// barOf makes a bar of some comparisons; none where there are none.
func barOf(what string, checks []check) []bar {
	if len(checks) == 0 {
		return nil
	}
	b := bar{What: what}
	var needed, got []string
	var met, missed []bool // of each whether that is unsure
	for i := range checks {
		c := &checks[i]
		word := "at most"
		if c.least {
			word = "at least"
		}
		needed = append(needed, fmt.Sprintf("%s %.2f", word, c.limit))
		text := c.String()
		switch {
		case c.seen.disturbed():
			b.Disturbed = true
		case !c.met():
			missed = append(missed, c.unsure())
			text = "**" + text + "**"
		default:
			met = append(met, c.unsure())
		}
		got = append(got, text)
	}
	// What is missed in one place is missed, whatever the others would be; and surely where it
	// surely is in one.
	if b.Met = len(missed) == 0; b.Met {
		b.Unsure = slices.Contains(met, true)
	} else {
		b.Unsure = !slices.Contains(missed, false)
	}
	b.Disturbed = b.Disturbed && b.Met
	b.Needed, b.Measured = strings.Join(slices.Compact(needed), ", "), strings.Join(got, "; ")
	return []bar{b}
}

// better names the faster of qemu-storage-daemon's engines.
func (m *measured) better() string {
	name, most := "", 0.0
	for i, other := range m.With {
		if slices.Contains(qsds, other) {
			if iops := load.MedianOf(m.Results[i], (*load.Result).IOPS); name == "" || iops > most {
				name, most = other, iops
			}
		}
	}
	return name
}

// Figures of a result.
func cpuOf(r *load.Result) float64 {
	if !r.Backend.Known {
		return math.NaN()
	}
	return r.Backend.CPU.Seconds() * 1e6 / float64(r.Requests)
}
func switchesOf(r *load.Result) float64 { return float64(r.Backend.Switches) / float64(r.Requests) }
func p50Of(r *load.Result) float64      { return float64(r.Percentile(50)) / 1e3 }
func p99Of(r *load.Result) float64      { return float64(r.Percentile(99)) / 1e3 }

// bars judges what was measured. What was not measured has no bar.
func bars(cases []*measured, idle []idleUse) []bar {
	var all []bar
	// each makes a bar for each pattern and client of a target.
	each := func(target, what string, of func(m *measured) (check, bool)) {
		checks := map[string][]check{}
		var order []string
		for _, m := range cases {
			if m.Target != target || m.Job.BlockSize != 4<<10 {
				continue
			}
			c, ok := of(m)
			if !ok {
				continue
			}
			name := fmt.Sprintf("%s, %s, %s client: %s", m.Disk, m.Job.Pattern, m.client(), what)
			if !slices.Contains(order, name) {
				order = append(order, name)
			}
			checks[name] = append(checks[name], c)
		}
		for _, name := range order {
			all = append(all, barOf(name, checks[name])...)
		}
	}
	against := func(m *measured, other string, figure func(*load.Result) float64, limit float64, least bool) (check, bool) {
		results := m.of(other)
		if results == nil {
			return check{}, false
		}
		c := check{depth: m.Job.Depth, got: compare(m.of(ours), results, figure), seen: m.Seen, limit: limit, least: least}
		if other != qsd {
			c.who = other
		}
		return c, true
	}
	iops := (*load.Result).IOPS

	each("cached", "requests per second", func(m *measured) (check, bool) { return against(m, m.better(), iops, 1.5, true) })
	each("null", "requests per second", func(m *measured) (check, bool) {
		switch {
		case m.Job.Depth == 1 && m.Job.Poll:
			return check{}, false // q-s-d's speed jumps
		case m.Job.Depth == 128:
			return against(m, qsd, iops, 1, true)
		}
		return against(m, qsd, iops, 1.2, true)
	})
	for _, target := range []string{"cached", "null"} {
		each(target, "CPU per request", func(m *measured) (check, bool) {
			if m.Job.Depth == 1 {
				return check{}, false
			}
			return against(m, m.better(), cpuOf, 1, false)
		})
		for _, latency := range []struct {
			what   string
			figure func(*load.Result) float64
		}{{"p50", p50Of}, {"p99", p99Of}} {
			each(target, latency.what+" of the latency", func(m *measured) (check, bool) {
				if m.Job.Depth != 1 {
					return check{}, false
				}
				return against(m, m.better(), latency.figure, 1, false)
			})
		}
	}
	each("cached", "requests per second against fio on the bare file", func(m *measured) (check, bool) {
		if m.Job.Depth != 32 || !m.Job.Poll {
			return check{}, false
		}
		limit := 1.2
		if m.Job.Pattern.Writes() {
			limit = 1
		}
		return against(m, fioURing, iops, limit, true)
	})
	each("direct", "requests per second", func(m *measured) (check, bool) { return against(m, qsdURing, iops, 0.95, true) })
	each("direct", "requests per second against fio on the bare file", func(m *measured) (check, bool) {
		// With the other client, it is the time to wake up that is the limit, and not the disk.
		if !m.Job.Poll {
			return check{}, false
		}
		return against(m, fioURing, iops, 0.95, true)
	})
	for _, u := range idle {
		if slices.Contains(vdevs, u.Name) {
			all = append(all, bar{What: fmt.Sprintf("%s, %s: CPU in %v when idle", u.Disk, u.Name, idleTime),
				Needed: fmt.Sprintf("at most %.1f ms", ms(idleBar)), Measured: u.cpu() + " ms" + u.Seen.mark(),
				Met: u.Use.Known && u.Use.CPU <= idleBar, Disturbed: u.Seen.disturbed()})
		}
	}
	return all
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }
