package chart

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
)

// element is one element of a picture.
type element struct {
	name string
	at   map[string]string
	text string
}

// number returns an attribute that is a number.
func (e element) number(t *testing.T, name string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(e.at[name], 64)
	if err != nil {
		t.Fatalf("%s of %+v: %v", name, e, err)
	}
	return v
}

// drawn writes a figure, which must be well-formed XML without a coordinate that is none, and
// returns its elements.
func drawn(t *testing.T, f *Figure) (all []element) {
	t.Helper()
	var b strings.Builder
	if err := f.Write(&b); err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(strings.NewReader(b.String()))
	for {
		token, err := d.Token()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, b.String())
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := element{name: token.Name.Local, at: map[string]string{}}
			for _, a := range token.Attr {
				e.at[a.Name.Local] = a.Value
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Errorf("%s has %s=%q", e.name, a.Name.Local, a.Value)
				}
			}
			all = append(all, e)
		case xml.CharData:
			all[max(len(all)-1, 0)].text += string(token)
		}
	}
}

// having returns the elements of that name for which an attribute has that value.
func having(all []element, name, attribute, value string) (some []element) {
	for _, e := range all {
		if e.name == name && e.at[attribute] == value {
			some = append(some, e)
		}
	}
	return some
}

func whole(v float64) string { return fmt.Sprintf("%.0f", v) }

func TestBarsAreAsLongAsTheirValues(t *testing.T) {
	b := &Bars{Series: []string{"a", "b"}, Format: whole, Groups: []Group{
		{Name: "one", Bars: []Bar{{Value: 100, Least: 90, Most: 120}, {Value: 50, Least: 50, Most: 50, Mark: "*"}}},
		{Name: "two", Bars: []Bar{{Value: math.NaN()}, {Value: math.Inf(1), Least: math.NaN(), Most: math.Inf(1)}}},
	}}
	all := drawn(t, &Figure{Title: "<&>\"\x00", Rows: [][]Panel{{b}}})
	blue, red := having(all, "rect", "fill", hue(0)), having(all, "rect", "fill", hue(1))
	if len(blue) != 2 || len(red) != 2 { // a bar, and the legend's
		t.Fatalf("%d and %d rectangles of the series' colours", len(blue), len(red))
	}
	long, short := blue[0].number(t, "width"), red[0].number(t, "width")
	if math.Abs(long-2*short) > 0.2 {
		t.Errorf("100 is %v long, and 50 is %v", long, short)
	}
	unit, x := long/100, blue[0].number(t, "x")
	whiskers := having(all, "line", "stroke", ink)
	if len(whiskers) != 3 {
		t.Fatalf("whiskers of %d lines", len(whiskers))
	}
	if from, to := whiskers[0].number(t, "x1"), whiskers[0].number(t, "x2"); math.Abs(from-x-90*unit) > 0.2 || math.Abs(to-x-120*unit) > 0.2 {
		t.Errorf("whiskers from %v to %v, the bar begins at %v and 1 is %v", from, to, x, unit)
	}
	var texts []string
	for _, e := range all {
		if e.name == "text" {
			texts = append(texts, e.text)
		}
	}
	if got := strings.Join(strings.Fields(strings.Join(texts, " ")), " "); got != "<&>\"� one 100 50* two - - a b" {
		t.Errorf("texts %q", got)
	}
}

func TestCurvesGoThroughTheirPoints(t *testing.T) {
	points := []Point{{0, 10 * time.Microsecond}, {0.9, 20 * time.Microsecond}, {0.99, 100 * time.Microsecond}}
	all := drawn(t, &Figure{Rows: [][]Panel{{&Curves{Curves: []Curve{
		{Name: "a", Hue: 1, Dash: 1, Points: points},
		{Name: "b", Hue: 2, Points: []Point{{0, 50 * time.Microsecond}, {0.999, time.Millisecond}}},
		{Name: "nothing"},
	}}}}})
	lines := having(all, "path", "stroke", hue(1))
	if len(lines) != 2 || lines[0].at["stroke-dasharray"] != dash(1) {
		t.Fatalf("%+v", lines)
	}
	var xs, ys []float64
	for _, at := range strings.FieldsFunc(lines[0].at["d"], func(r rune) bool { return r == 'M' || r == 'L' }) {
		var x, y float64
		if _, err := fmt.Sscanf(at, "%f,%f", &x, &y); err != nil {
			t.Fatal(err)
		}
		xs, ys = append(xs, x), append(ys, y)
	}
	// From nought to 99.9 % and from 10 µs to 1 ms.
	left, right := margin+plotLeft, margin+panelWidth-16
	step := (right - left) / 3
	for i, want := range []float64{left, left + step, left + 2*step} {
		if math.Abs(xs[i]-want) > 0.2 {
			t.Errorf("point %d stands at %v from the left, want %v", i, xs[i], want)
		}
	}
	if decade := ys[0] - ys[2]; math.Abs(decade-plotHeight/2) > 0.2 || math.Abs(ys[0]-ys[1]-decade*math.Log10(2)) > 0.2 {
		t.Errorf("heights %v, and a decade is %v", ys, plotHeight/2)
	}
}

func TestAFigureWithoutAnythingIsOneAllTheSame(t *testing.T) {
	drawn(t, &Figure{})
	drawn(t, &Figure{Rows: [][]Panel{{&Bars{}, &Curves{}}, {&Bars{Series: []string{"a"}, Format: whole, Groups: []Group{{Bars: []Bar{{}}}}}}}})
	drawn(t, &Figure{Rows: [][]Panel{{&Curves{Curves: []Curve{{Points: []Point{{0, time.Millisecond}, {0.5, time.Millisecond}}}}}}}})
}

func TestAStackIsAsHighAsItsPanels(t *testing.T) {
	one := &Bars{Series: []string{"a"}, Groups: []Group{{Bars: []Bar{{Value: 1}}}}, Format: whole}
	all := drawn(t, &Figure{Rows: [][]Panel{{Stack{one, one}}}})
	bars := having(all, "rect", "fill", hue(0))
	if len(bars) != 2 {
		t.Fatalf("%d bars", len(bars))
	}
	if apart := bars[1].number(t, "y") - bars[0].number(t, "y"); math.Abs(apart-one.height()-gap) > 0.2 {
		t.Errorf("panels %v high stand %v apart", one.height(), apart)
	}
	if got, want := (Stack{one, one}).height(), 2*one.height()+gap; got != want {
		t.Errorf("height %v, want %v", got, want)
	}
}

func TestAxesEndAtOneTwoOrFive(t *testing.T) {
	for _, tt := range []struct{ value, below, above float64 }{{1, 1, 1}, {3, 2, 5}, {5, 5, 5}, {99, 50, 100}, {700, 500, 1000}, {0.3, 0.2, 0.5}} {
		v := math.Log10(tt.value)
		below, above := math.Pow(10, floorStep(v)), math.Pow(10, -floorStep(-v))
		if math.Abs(below/tt.below-1) > 1e-6 || math.Abs(above/tt.above-1) > 1e-6 {
			t.Errorf("%v is between %v and %v, want %v and %v", tt.value, below, above, tt.below, tt.above)
		}
	}
}

func TestLegendsBreakWhereThereIsNoRoom(t *testing.T) {
	long := strings.Repeat("x", 60) // 432 wide
	for n, names := range map[int][]string{1: {"a", "b"}, 2: {long, long}, 3: {strings.Repeat("y", 500), long, long}} {
		if got := legend(nil, 0, 0, names, nil); got != n {
			t.Errorf("%d lines, want %d", got, n)
		}
	}
}
