package main

import (
	"fmt"
	"slices"

	"vdev/internal/bench/chart"
	"vdev/internal/bench/load"
)

// drawn are those that are in the pictures: as many as there are colours.
var drawn = []string{ours, qsd, qsdURing, qsdThreads, fioURing}

// throughput draws how many requests per second there were, a panel for each disk and client.
func (r *report) throughput() *chart.Figure {
	f := &chart.Figure{Title: "Thousands of requests per second, 4 KiB, one queue", Notes: append(r.notes(),
		"Bars: medians of the rounds, and the least and the most of them. † the front-end was the limit.")}
	r.panels(f, func(title string, names []string, cases []*measured) chart.Panel {
		p := &chart.Bars{Title: title, Series: names, Format: number}
		for _, m := range cases {
			g := chart.Group{Name: fmt.Sprintf("%s, depth %d", m.Job.Pattern, m.Job.Depth) + disturbedMark(m)}
			for _, name := range names {
				bar := chart.Bar{Mark: limitMark(m.of(name))}
				var each []float64
				for _, result := range m.of(name) {
					each = append(each, result.IOPS()/1e3)
				}
				bar.Value, bar.Least, bar.Most = load.Median(each), slices.Min(each), slices.Max(each)
				g.Bars = append(g.Bars, bar)
			}
			p.Groups = append(p.Groups, g)
		}
		return p
	})
	return f
}

// latency draws the latencies at depth 1, a panel for each disk and client.
func (r *report) latency() *chart.Figure {
	f := &chart.Figure{Title: "Latency at depth 1, 4 KiB", Notes: append(r.notes(), "Of all rounds together.")}
	r.panels(f, func(title string, names []string, cases []*measured) chart.Panel {
		p := &chart.Curves{Title: title}
		for dash, m := range cases {
			if m.Job.Depth != 1 {
				continue
			}
			for hue, name := range names {
				curve := chart.Curve{Name: name + ", " + string(m.Job.Pattern) + disturbedMark(m), Hue: hue, Dash: dash}
				for _, q := range load.Curve(m.of(name)) {
					curve.Points = append(curve.Points, chart.Point{Share: q.Share, Latency: q.Latency})
				}
				p.Curves = append(p.Curves, curve)
			}
		}
		return p
	})
	return f
}

// disturbedMark is what a picture has of that.
func disturbedMark(m *measured) string {
	if m.Seen.disturbed() {
		return ", disturbed"
	}
	return ""
}

// notes say what both pictures are of.
func (r *report) notes() []string {
	var notes []string
	for _, m := range r.Machine {
		if slices.Contains([]string{"CPU", "Kernel", "vdev", "qemu-storage-daemon"}, m[0]) {
			notes = append(notes, m[0]+": "+m[1])
		}
	}
	return notes
}

// panels adds a row for each disk of 4 KiB requests, with a panel for each client, which draw makes
// of its cases and of those who have a part in all of them.
func (r *report) panels(f *chart.Figure, draw func(title string, names []string, cases []*measured) chart.Panel) {
	for _, target := range []string{"null", "cached", "direct"} {
		var row []chart.Panel
		for _, client := range allClients {
			var cases []*measured
			names := slices.Clone(drawn)
			for _, m := range r.Cases {
				if m.Target == target && m.client() == client {
					cases = append(cases, m)
					names = slices.DeleteFunc(names, func(name string) bool { return m.of(name) == nil })
				}
			}
			if cases != nil {
				row = append(row, draw(cases[0].Disk+", "+client+" client", names, cases))
			}
		}
		if row != nil {
			f.Rows = append(f.Rows, row)
		}
	}
}
