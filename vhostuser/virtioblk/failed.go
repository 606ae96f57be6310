package virtioblk

import "time"

// Failures are the requests that storage has failed. What the guest has asked for in vain (beyond
// the disk's end, for one) is none, nor is what was cancelled, or what storage does not have.
type Failures struct {
	Count uint64    // since the Device was made
	Last  Request   // the zero Request where Count is 0
	At    time.Time // when Last failed
}

// storageFailed notes that storage has ended the request with err. On the reactor, once at most.
func (r *request) storageFailed(err error) {
	d := r.q.d
	told := r.told(err)
	told.Status = statusOf(r.typ, err)
	if cancelled(err) || told.Status == statusUnsupp && r.typ != tIn && r.typ != tOut {
		return
	}
	d.mu.Lock()
	d.failures = Failures{Count: d.failures.Count + 1, Last: told, At: time.Now()}
	d.mu.Unlock()
	if d.config.Failed != nil {
		d.config.Failed(told)
	}
}
