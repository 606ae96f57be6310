package virtioblk

import (
	"sync"
	"time"
)

// Failures are the requests that storage has failed. What the guest has asked for in vain (beyond
// the disk's end, for one) is none, nor is what was cancelled, or what storage does not have.
type Failures struct {
	Count uint64    // since the Device was made
	Last  Request   // the zero Request where Count is 0
	At    time.Time // when Last failed
}

// failures are those of a Device.
type failures struct {
	mu sync.Mutex
	f  Failures
}

// storageFailed notes that storage has ended the request with err. On the reactor, once at most.
func (r *request) storageFailed(err error) {
	d := r.q.d
	told := r.told(err)
	told.Status = statusOf(r.typ, err)
	if cancelled(err) || told.Status == statusUnsupp && r.typ != tIn && r.typ != tOut {
		return
	}
	d.failures.mu.Lock()
	f := &d.failures.f
	f.Count++
	f.Last, f.At = told, time.Now()
	d.failures.mu.Unlock()
	if d.failed != nil {
		d.failed(told)
	}
}

func (f *failures) get() Failures {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.f
}
