// Package chart draws what a benchmark has measured, as SVG: curves of latencies, and bars. It is
// small on purpose. A picture has a background of its own, so that it can be read in light and in
// dark viewers. It needs no script and no font of its own.
package chart

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Figure is a picture: panels in rows, under a title.
type Figure struct {
	Title string
	Notes []string // in small print under the title, a line each
	Rows  [][]Panel
}

// Panel is a part of a figure: Bars, Curves, or a Stack of them.
type Panel interface {
	height() float64
	draw(c *canvas, x, y float64)
}

// Stack is panels one below the other.
type Stack []Panel

func (s Stack) height() float64 {
	h := gap * float64(max(len(s)-1, 0))
	for _, p := range s {
		h += p.height()
	}
	return h
}

func (s Stack) draw(c *canvas, x, y float64) {
	for _, p := range s {
		p.draw(c, x, y)
		y += p.height() + gap
	}
}

// Measures of all figures, in units of the picture, which are pixels where nobody scales it.
const (
	margin     = 24.0
	gap        = 28.0 // between panels
	panelWidth = 560.0
	titleSize  = 20.0
	headSize   = 14.0 // of a panel
	textSize   = 12.0
	lineHeight = 18.0
)

// Colours. Those of the series can be told apart by the colour-blind (Okabe and Ito).
const (
	paper, ink, faint, grid = "#ffffff", "#1f2328", "#59636e", "#e3e6ea"
)

var hues = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7"}

func hue(i int) string { return hues[i%len(hues)] }

// Write writes the figure as an SVG document.
func (f *Figure) Write(w io.Writer) error {
	columns := 1
	for _, row := range f.Rows {
		columns = max(columns, len(row))
	}
	width := 2*margin + float64(columns)*panelWidth + float64(columns-1)*gap
	c := &canvas{}
	y := margin + titleSize
	c.text(margin, y, start, titleSize, ink, true, fit(f.Title, titleSize, width-2*margin))
	for _, note := range f.Notes {
		y += lineHeight
		c.text(margin, y, start, textSize, faint, false, fit(note, textSize, width-2*margin))
	}
	for _, row := range f.Rows {
		y += gap
		tallest := 0.0
		for i, p := range row {
			p.draw(c, margin+float64(i)*(panelWidth+gap), y)
			tallest = max(tallest, p.height())
		}
		y += tallest
	}
	y += margin
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]s %[2]s" width="%[1]s" height="%[2]s" `+
		`font-family="system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif" role="img">
<title>%[3]s</title>
<rect width="100%%" height="100%%" rx="6" fill="%[4]s"/>
%[5]s</svg>
`, num(width), num(y), escape(f.Title), paper, c.b.String())
	return err
}

// canvas takes elements.
type canvas struct{ b strings.Builder }

// Where a text stands, seen from its point.
const (
	start  = "start"
	middle = "middle"
	end    = "end"
)

func (c *canvas) text(x, y float64, anchor string, size float64, colour string, bold bool, s string) {
	weight := ""
	if bold {
		weight = ` font-weight="600"`
	}
	// The margin keeps it legible where a line passes.
	fmt.Fprintf(&c.b, "<text x=\"%s\" y=\"%s\" text-anchor=\"%s\" font-size=\"%s\" fill=\"%s\" stroke=\"%s\" stroke-width=\"3\" paint-order=\"stroke\"%s>%s</text>\n",
		num(x), num(y), anchor, num(size), colour, paper, weight, escape(s))
}

func (c *canvas) line(x1, y1, x2, y2 float64, colour string, width float64, dash string) {
	fmt.Fprintf(&c.b, "<line x1=\"%s\" y1=\"%s\" x2=\"%s\" y2=\"%s\" stroke=\"%s\" stroke-width=\"%s\"%s/>\n",
		num(x1), num(y1), num(x2), num(y2), colour, num(width), dashed(dash))
}

func (c *canvas) rect(x, y, width, height float64, colour string) {
	fmt.Fprintf(&c.b, "<rect x=\"%s\" y=\"%s\" width=\"%s\" height=\"%s\" fill=\"%s\"/>\n", num(x), num(y), num(width), num(height), colour)
}

// path draws a line through points, x and y in turn.
func (c *canvas) path(points []float64, colour, dash string) {
	c.b.WriteString(`<path d="`)
	for i := 0; i < len(points); i += 2 {
		command := "L"
		if i == 0 {
			command = "M"
		}
		c.b.WriteString(command + num(points[i]) + "," + num(points[i+1]))
	}
	fmt.Fprintf(&c.b, "\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\" stroke-linejoin=\"round\"%s/>\n", colour, dashed(dash))
}

func dashed(dash string) string {
	if dash == "" {
		return ""
	}
	return ` stroke-dasharray="` + dash + `"`
}

// legend draws entries in lines of the panel's width, the first at y, and returns how many lines
// there are. Without a canvas it only counts. mark draws what stands before a name.
func legend(c *canvas, x, y float64, names []string, mark func(i int, x, y float64)) (lines int) {
	const markWidth, between = 28.0, 18.0
	at := 0.0
	lines = 1
	for i, name := range names {
		name = fit(name, textSize, panelWidth-markWidth)
		needs := markWidth + width(name, textSize)
		if at > 0 && at+needs > panelWidth {
			at = 0
			lines++
		}
		if c != nil {
			line := y + float64(lines-1)*lineHeight
			mark(i, x+at, line-textSize/3)
			c.text(x+at+markWidth, line, start, textSize, ink, false, name)
		}
		at += needs + between
	}
	return lines
}

// width is about as wide as a text is, rather more.
func width(s string, size float64) float64 { return float64(utf8.RuneCountInString(s)) * size * 0.6 }

// fit shortens a text that is wider than room.
func fit(s string, size, room float64) string {
	if width(s, size) <= room {
		return s
	}
	runes := []rune(s)
	n := max(int(room/(size*0.6))-1, 0)
	return string(runes[:min(n, len(runes))]) + "…"
}

// num writes a coordinate to a tenth.
func num(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }

func escape(s string) string {
	var b strings.Builder
	// A Builder does not fail. What XML cannot have becomes U+FFFD.
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
