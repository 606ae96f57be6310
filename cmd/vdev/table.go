package main

import (
	"fmt"
	"io"
	"time"
)

// table writes lines that begin with a name.
type table struct {
	w   io.Writer
	err error
}

func (t *table) row(name, format string, args ...any) {
	if len(name) >= 12 {
		name += " "
	}
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, "%-12s"+format+"\n", append([]any{name}, args...)...)
	}
}

// count gives a number of things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// age gives a number of seconds as a duration that is short to read.
func age(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
