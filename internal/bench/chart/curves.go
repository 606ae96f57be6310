package chart

import (
	"fmt"
	"math"
	"time"
)

// Curves is a panel of latencies by the share of the requests that took no longer. From left to
// right each step is a tenth of the requests that are left, so that the few slow ones have as much
// room as the many others; upwards it is a logarithm, too.
type Curves struct {
	Title  string
	Curves []Curve
}

// Curve is one line of Curves.
type Curve struct {
	Name   string
	Hue    int // which colour: the same as of the bars of that series
	Dash   int // which kind of line
	Points []Point
}

// Point says that a share of the requests, from 0 to less than 1, took no longer than Latency,
// which is more than 0.
type Point struct {
	Share   float64
	Latency time.Duration
}

// dashes are the kinds of lines.
var dashes = []string{"", "7 4", "2 3", "9 3 2 3", "14 4", "5 2 1 2 1 2"}

func dash(i int) string { return dashes[i%len(dashes)] }

const (
	plotHeight = 260.0
	plotLeft   = 62.0 // room for the latencies' names
	plotBelow  = 44.0 // for those of the shares
)

func (p *Curves) names() (names []string) {
	for _, c := range p.Curves {
		names = append(names, c.Name)
	}
	return names
}

func (p *Curves) height() float64 {
	return headRoom + plotHeight + plotBelow + lineHeight*float64(legend(nil, 0, 0, p.names(), nil))
}

// nines says how far to the right a share stands: one for each nine.
func nines(share float64) float64 { return -math.Log10(1 - share) }

// axes says what part of the world a panel shows.
type axes struct {
	nines     float64 // from 0
	low, high float64 // decimal logarithms of nanoseconds
}

// axes finds what has room for all points.
func (p *Curves) axes() axes {
	a := axes{nines: 1, low: math.Inf(1), high: math.Inf(-1)}
	for _, c := range p.Curves {
		for _, pt := range c.Points {
			log := math.Log10(float64(pt.Latency))
			a.nines, a.low, a.high = max(a.nines, nines(pt.Share)), min(a.low, log), max(a.high, log)
		}
	}
	if a.low > a.high { // no points
		a.low, a.high = 3, 4
	}
	// To the next of 1, 2 and 5, and never nothing between.
	a.low = floorStep(a.low)
	if a.high = -floorStep(-a.high); a.high <= a.low {
		a.high = a.low + math.Log10(2)
	}
	return a
}

// steps are the logarithms of 1, 2 and 5.
var steps = [...]float64{0, math.Log10(2), math.Log10(5)}

// floorStep rounds a logarithm down to that of 1, 2 or 5 times a power of ten; -floorStep(-v)
// rounds it up, as 1/2 and 1/5 are of that kind.
func floorStep(v float64) float64 {
	const slack = 1e-9
	whole := math.Floor(v + slack)
	best := whole
	for _, s := range steps {
		if whole+s <= v+slack {
			best = whole + s
		}
	}
	return best
}

func (p *Curves) draw(c *canvas, x, y float64) {
	c.text(x, y+headSize, start, headSize, ink, true, fit(p.Title, headSize, panelWidth))
	a := p.axes()
	left, top, right := x+plotLeft, y+headRoom, x+panelWidth-16
	bottom := top + plotHeight
	toX := func(n float64) float64 { return left + n/a.nines*(right-left) }
	toY := func(log float64) float64 { return bottom - (log-a.low)/(a.high-a.low)*plotHeight }

	all := a.high-a.low < 3 // with more decades than that only 1 of 1, 2 and 5 has a name
	for whole := math.Floor(a.low); whole <= a.high; whole++ {
		for i, s := range steps {
			if at := whole + s; at >= a.low-1e-9 && at <= a.high+1e-9 {
				c.line(left, toY(at), right, toY(at), grid, 1, "")
				if i == 0 || all {
					c.text(left-8, toY(at)+textSize/3, end, textSize, faint, false, duration(time.Duration(math.Round(math.Pow(10, at)))))
				}
			}
		}
	}
	for _, percent := range []float64{0, 50, 90, 99, 99.9, 99.99, 99.999, 99.9999} {
		if at := nines(percent / 100); at <= a.nines+1e-9 {
			c.line(toX(at), top, toX(at), bottom, grid, 1, "")
			c.text(toX(at), bottom+16, middle, textSize, faint, false, fmt.Sprint(percent))
		}
	}
	c.text((left+right)/2, bottom+34, middle, textSize, faint, false, "per cent of the requests took no longer")
	c.line(left, bottom, right, bottom, faint, 1, "")
	c.line(left, top, left, bottom, faint, 1, "")

	for _, curve := range p.Curves {
		var points []float64
		for _, pt := range curve.Points {
			points = append(points, toX(nines(pt.Share)), toY(math.Log10(float64(pt.Latency))))
		}
		if len(points) > 0 {
			c.path(points, hue(curve.Hue), dash(curve.Dash))
		}
	}
	legend(c, x, bottom+plotBelow+textSize, p.names(), func(i int, x, y float64) {
		c.path([]float64{x, y, x + 22, y}, hue(p.Curves[i].Hue), dash(p.Curves[i].Dash))
	})
}

// duration writes a round latency.
func duration(d time.Duration) string {
	switch {
	case d < time.Microsecond:
		return fmt.Sprintf("%d ns", d)
	case d < time.Millisecond:
		return fmt.Sprintf("%g µs", float64(d)/1e3)
	case d < time.Second:
		return fmt.Sprintf("%g ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%g s", d.Seconds())
}
