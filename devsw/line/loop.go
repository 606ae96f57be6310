package line

// NewNull makes an End that takes everything and has no input.
func NewNull() End { return new(null) }

type null struct{ Base }

func (*null) Writev(p [][]byte) (n int, err error) {
	for _, b := range p {
		n += len(b)
	}
	return n, nil
}

func (*null) Close() {}

// loopBytes is how much a loop holds between output and input.
const loopBytes = 16 << 10

// NewLoop makes an End whose input is what was output. On a Line with the overflow Wait nothing is
// lost, and who does not read is not written for without limit.
func NewLoop() End {
	l := new(loop)
	l.q = NewQueue(loopBytes, l.Ready)
	return l
}

type loop struct {
	Base
	q *Queue
}

func (l *loop) Writev(p [][]byte) (n int, err error) {
	for _, b := range p {
		k, err := l.q.Put(b)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (l *loop) Readv(p [][]byte) (int, error) { return l.q.Readv(p) }

func (l *loop) Close() { l.q.Close() }
