package virtioblk

import (
	"testing"

	"vdev/virtq/virtqtest"
)

// TestAPageOfThisProcessIsNoPredecessors: a front-end brings it back while the disk is still being
// closed.
func TestAPageOfThisProcessIsNoPredecessors(t *testing.T) {
	c := &cautious{volatile: true, slow: make(chan struct{})}
	w := cautiousBench(t, c)
	region := w.startWith(w.all())
	if st, _ := w.do(0, tOut, 0, []virtqtest.Seg{w.buffer(512)}, nil); st != statusOK {
		t.Fatalf("write: %d", st)
	}
	w.hangUp()
	w.connect(everything)
	for _, r := range w.rings {
		r.Reconnect(w.f)
	}
	w.restart(region)
	close(c.slow)
	w.do(0, tFlush, 0, nil, nil)
	if told := c.heard(); told != nil {
		t.Errorf("the disk was told %+v", told)
	}
}
