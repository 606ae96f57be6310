package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vdev/internal/spec"
)

// The types in this file are pflag.Values: flags whose errors say what would have been right.

// several is a list with commas: values of one kind, each once.
type several[T comparable] struct {
	values []T
	parse  func(string) (T, error)
	text   func(T) string
	kind   string // what one of them is called in help
}

func (l *several[T]) Type() string { return l.kind + ",..." }

func (l *several[T]) String() string {
	var words []string
	for _, v := range l.values {
		words = append(words, l.text(v))
	}
	return strings.Join(words, ",")
}

func (l *several[T]) Set(s string) error {
	var values []T
	for word := range strings.SplitSeq(s, ",") {
		v, err := l.parse(word)
		if err != nil {
			return fmt.Errorf("%q %w", word, err)
		}
		if slices.Contains(values, v) {
			return fmt.Errorf("%q is given twice", word)
		}
		values = append(values, v)
	}
	l.values = values
	return nil
}

// severalNumbers is a list of whole numbers within bounds.
func severalNumbers(min, max int, values ...int) several[int] {
	return several[int]{values: values, text: strconv.Itoa, kind: "N", parse: func(s string) (int, error) {
		n := spec.Number{Min: min, Max: max}
		err := n.Set(s)
		return n.Value, err
	}}
}

// severalChoices is a list of some of a few words.
func severalChoices(of []string, values ...string) several[string] {
	return several[string]{values: values, text: func(s string) string { return s }, kind: "NAME",
		parse: func(s string) (string, error) { return s, (&spec.Choice{Of: of}).Set(s) }}
}

// cpuList is a list of processors, as the kernel writes them: 0-3,8.
type cpuList []int

func (l *cpuList) Type() string { return "LIST" }

func (l *cpuList) String() string {
	var words []string
	for _, cpu := range *l {
		words = append(words, strconv.Itoa(cpu))
	}
	return strings.Join(words, ",")
}

func (l *cpuList) Set(s string) error {
	const most = 8192 // no kernel has more
	var cpus cpuList
	for word := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(word, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 64)
		last, err2 := strconv.ParseUint(to, 10, 64)
		if err1 != nil || err2 != nil || first > last || last >= most {
			return fmt.Errorf("%q must be a processor's number, or a range of them, such as 0-3", word)
		}
		for cpu := first; cpu <= last; cpu++ {
			cpus = append(cpus, int(cpu))
		}
	}
	*l = cpus
	return nil
}
