package reactor

import "slices"

// roster has the active Sources, in the order of their turns: one of each owner's, and then again.
// So a Source waits for as many others as there are owners with work, and not for each of the 256
// queues that a single device may have.
type roster struct {
	lines []*line // of the owners that have active Sources
	at    int     // of lines, whose turn it is
	n     int     // Sources, those that have been removed and not dropped yet included
}

// line is one owner's part of a roster.
type line struct {
	active []*Source
	at     int // of active, whose turn it is when it is the owner's
	all    int // Sources of the owner's, active or not
}

// add has s take its turns from now on.
func (a *roster) add(s *Source) {
	if len(s.line.active) == 0 {
		a.lines = append(a.lines, s.line)
	}
	s.line.active = append(s.line.active, s)
	a.n++
}

// next returns the Source whose turn it is. There is one.
func (a *roster) next() *Source {
	if a.at >= len(a.lines) {
		a.at = 0
	}
	l := a.lines[a.at]
	if l.at >= len(l.active) {
		l.at = 0
	}
	return l.active[l.at]
}

// turned says that the Source that next has returned has had its turn. Others may have been added
// since.
func (a *roster) turned() {
	a.lines[a.at].at++
	a.at++
}

// drop takes the Source that next has returned out. It was the last one's turn instead, of its line
// and of the roster.
func (a *roster) drop() {
	l := a.lines[a.at]
	l.active = dropAt(l.active, l.at)
	a.n--
	if len(l.active) == 0 {
		a.lines = dropAt(a.lines, a.at)
	}
}

// dropAt takes list[i] out, and puts the last one in its place.
func dropAt[T any](list []*T, i int) []*T {
	last := len(list) - 1
	list[i], list[last] = list[last], nil
	return list[:last]
}

// keep takes those out for which stays is false, which may add others. They are asked, too.
func (a *roster) keep(stays func(*Source) bool) {
	for i := 0; i < len(a.lines); i++ {
		l := a.lines[i]
		n := 0
		for j := 0; j < len(l.active); j++ {
			if s := l.active[j]; stays(s) {
				l.active[n] = s
				n++
			}
		}
		a.n -= len(l.active) - n
		clear(l.active[n:])
		l.active = l.active[:n]
		if n == 0 {
			a.lines[i] = nil // and not dropped yet: a Source of it may be added
		}
	}
	a.lines = slices.DeleteFunc(a.lines, func(l *line) bool { return l == nil })
}
