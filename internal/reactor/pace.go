package reactor

import "time"

// pace is a ticker of who watches the reactor. Each look takes the processor away from somebody,
// and who waits for a request just then waits longer: so it is seldom while all goes well.
type pace struct {
	*time.Ticker
	quick, slow time.Duration
	well        int // looks that found all well, since the last doubt
}

// calmAfter is after how many good looks one after the other the pace slows down.
const calmAfter = 50

func newPace(quick, slow time.Duration) *pace {
	return &pace{Ticker: time.NewTicker(quick), quick: quick, slow: slow}
}

// calm says that a look has found all well.
func (p *pace) calm() {
	if p.well++; p.well == calmAfter {
		p.Reset(p.slow)
	}
}

// doubt has the next look come soon; after Stop, too.
func (p *pace) doubt() {
	p.well = 0
	p.Reset(p.quick)
}
