package chart

// Bars is a panel of bars from left to right, in groups one below the other, with a bar for each
// series in each group.
type Bars struct {
	Title  string
	Series []string // what each bar of a group stands for
	Groups []Group
	// Format makes the text beside a bar from its value.
	Format func(float64) string
	// Line, where it is not 0, is a value that is marked: what all the others are to be compared
	// with.
	Line float64
}

// Group is some bars with a name.
type Group struct {
	Name string
	Bars []Bar // one for each series
}

// Bar is a value, and the bounds between which it varies. A value that is not finite has no bar.
type Bar struct {
	Value       float64
	Least, Most float64
	Mark        string // after the value: a reference to a note
}

const (
	barHeight = 18.0
	barGap    = 3.0
	groupGap  = 14.0
	headRoom  = 30.0 // the panel's title
)

func (b *Bars) groupHeight() float64 { return float64(len(b.Series))*(barHeight+barGap) - barGap }

func (b *Bars) plotHeight() float64 { return float64(len(b.Groups)) * (b.groupHeight() + groupGap) }

// named tells whether a legend says whose bars are whose.
func (b *Bars) named() bool { return len(b.Series) > 1 }

func (b *Bars) height() float64 {
	h := headRoom + b.plotHeight()
	if b.named() {
		h += lineHeight * float64(legend(nil, 0, 0, b.Series, nil)+1)
	}
	return h
}

// most is the greatest value that is to be seen.
func (b *Bars) most() float64 {
	most := b.Line
	for _, g := range b.Groups {
		for _, v := range g.Bars {
			for _, v := range []float64{v.Value, v.Most} {
				if finite(v) {
					most = max(most, v)
				}
			}
		}
	}
	if most <= 0 {
		return 1
	}
	return most
}

// textOf is what stands beside a bar.
func (b *Bars) textOf(v Bar) string {
	if !finite(v.Value) {
		return "-"
	}
	return b.Format(v.Value) + v.Mark
}

// scale returns where the bars begin, from the panel's left edge, and how long one is for 1.
func (b *Bars) scale() (left, unit float64) {
	names, values := 0.0, 0.0
	for _, g := range b.Groups {
		names = max(names, width(g.Name, textSize))
		for _, v := range g.Bars {
			values = max(values, width(b.textOf(v), textSize))
		}
	}
	left = min(names, panelWidth/3) + 10
	return left, (panelWidth - left - values - 8) / b.most()
}

func (b *Bars) draw(c *canvas, x, y float64) {
	c.text(x, y+headSize, start, headSize, ink, true, fit(b.Title, headSize, panelWidth))
	left, unit := b.scale()
	top := y + headRoom
	line := top
	for _, g := range b.Groups {
		c.text(x+left-10, line+b.groupHeight()/2+textSize/3, end, textSize, ink, false, fit(g.Name, textSize, left-10))
		for i, v := range g.Bars {
			b.bar(c, x+left, line+float64(i)*(barHeight+barGap), unit, hue(i), v)
		}
		line += b.groupHeight() + groupGap
	}
	bottom := line - groupGap
	c.line(x+left, top-4, x+left, bottom+4, faint, 1, "")
	if b.Line != 0 {
		at := x + left + b.Line*unit
		c.line(at, top-4, at, bottom+4, ink, 1, "4 3")
	}
	if b.named() {
		legend(c, x, line+lineHeight, b.Series, func(i int, x, y float64) { c.rect(x, y-6, 20, 12, hue(i)) })
	}
}

// bar draws one bar with its whiskers, and its value beyond both.
func (b *Bars) bar(c *canvas, x, y, unit float64, colour string, v Bar) {
	reach := 0.0
	if finite(v.Value) {
		reach = v.Value * unit
		c.rect(x, y, reach, barHeight, colour)
	}
	if finite(v.Least) && finite(v.Most) && v.Most > v.Least {
		from, to, mid := x+v.Least*unit, x+v.Most*unit, y+barHeight/2
		c.line(from, mid, to, mid, ink, 1.2, "")
		c.line(from, mid-4, from, mid+4, ink, 1.2, "")
		c.line(to, mid-4, to, mid+4, ink, 1.2, "")
		reach = max(reach, v.Most*unit)
	}
	c.text(x+reach+6, y+barHeight/2+textSize/3, start, textSize, ink, false, b.textOf(v))
}
