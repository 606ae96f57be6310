package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/internal/control"
	"vdev/internal/trace"
	"vdev/specfs"
	"vdev/vhostuser"
)

// A device that could not be opened is tried again after this time, and after twice as long each
// time up to the maximum: what it needs may come when somebody mounts a file system, starts a
// server, or ends another program. Each device has one attempt at a time.
const (
	firstAgain = 1 * time.Second
	lastAgain  = 1 * time.Minute
)

// Device is one device of a Set, from the moment it is described to its end. It is a
// control.Target; its methods are called on any goroutine.
type Device struct {
	host     *host
	config   DeviceConfig
	report   *reporter
	commands Commands
	warned   map[string]bool // what Parts.Warn has said; of the one attempt at a time
	first    chan attempt    // what comes of the first one
	again    chan struct{}   // it is to be opened now, or what it serves is to be looked at again

	// up is all that stands behind the socket, from just before that is there. It stays when the
	// device has ended. nil: the device is not served, and why says why not.
	up atomic.Pointer[stack]

	mu   sync.Mutex
	why  error
	next time.Time // when it is tried again; zero: just now
}

var _ control.Target = (*Device)(nil)

// errSilent is why a device is not served whose first attempt goes on.
var errSilent = errors.New("its storage has not answered since vdev was started")

func newDevice(h *host, c DeviceConfig) *Device {
	d := &Device{
		host: h, config: c, warned: map[string]bool{}, first: make(chan attempt, 1), again: make(chan struct{}, 1), why: errSilent,
	}
	d.report = newReporter(c.Name, h.Log(c.Name), h.Trace, d.moving)
	d.commands.report = d.report
	return d
}

// Name is what the device is called, or empty where it is the only one.
func (d *Device) Name() string { return d.config.Name }

// Life is the record of what has happened to the device.
func (d *Device) Life() *trace.Log { return d.report.life }

// ofDevice says which device an error is about.
func (d *Device) ofDevice(err error) error {
	if d.config.Name == "" || err == nil {
		return err
	}
	return fmt.Errorf("device %s: %w", d.config.Name, err)
}

// stack is all that stands behind a device's socket, and the socket.
type stack struct {
	table    *devsw.Table
	fs       *specfs.FS
	model    Model
	backend  *vhostuser.Backend
	listener net.Listener // nil before listen
	there    atomic.Bool  // the socket is
	closing  sync.Once
}

// attempt is what comes of opening a device.
type attempt struct {
	stack *stack // nil with err
	err   error
}

// begin opens the device for the first time, in the background.
func (d *Device) begin(ctx context.Context) {
	go func() {
		s, err := d.open(ctx)
		d.first <- attempt{s, err}
	}()
}

// awaitFirst waits for what comes of begin, where that ends before patience does.
func (d *Device) awaitFirst(patience context.Context) (a attempt, ended bool) {
	select {
	case a = <-d.first:
		return a, true
	case <-patience.Done():
	}
	select {
	case a = <-d.first:
		return a, true
	default:
		return a, false
	}
}

// open makes all that stands behind the socket. That takes as long as storage does.
func (d *Device) open(ctx context.Context) (_ *stack, err error) {
	s := &stack{table: devsw.NewTable()}
	s.fs = specfs.New(s.table, specfs.WithTrace(d.report.specfs))
	p := Parts{
		Table: s.table, FS: s.fs, Pool: d.host.pool, Log: d.report.log, Commands: &d.commands, Warn: d.warn, Note: d.report.model,
		ConfigChanged: func() { s.backend.ConfigChanged() }, // it is there before a front-end is
	}
	if d.report.trace != nil {
		p.Trace = func(what fmt.Stringer) {
			d.report.trace(Line{Device: d.config.Name, From: d.config.Kind.Name(), What: what, Many: true})
		}
	}
	if s.model, err = d.config.Kind.Open(ctx, p); err != nil {
		return nil, err
	}
	c := s.model.Backend()
	c.Reactors, c.Trace, c.AnyMemoryFiles = d.host.reactors, d.report.vhostuser, d.config.AnyMemory
	c.NotMigratable, c.CancelAfter = !d.config.Migratable, d.config.CancelAfter
	if s.backend, err = vhostuser.New(c); err != nil {
		return nil, errors.Join(err, s.model.Close())
	}
	return s, nil
}

// warn is Parts.Warn.
func (d *Device) warn(text string) {
	if !d.warned[text] {
		d.warned[text] = true
		d.report.log.Asked.Warn(text)
	}
}

// listen makes the socket of a device that was opened. Where that cannot be, the device is closed
// again.
func (d *Device) listen(s *stack) error {
	d.up.Store(s)
	l, err := d.config.Listen()
	if err != nil {
		d.up.Store(nil)
		return errors.Join(err, s.close())
	}
	s.listener = l
	s.there.Store(true)
	about := append(s.model.About(), "socket", l.Addr().String(), "aio", string(d.host.reactors.Mode()))
	d.report.log.Asked.Info("serving a "+s.model.Noun(), about...)
	return nil
}

// serve serves the device, which is not open any more when it returns, and takes it down. One that
// is not up is tried until it is, or ctx ends.
func (d *Device) serve(ctx context.Context) error {
	s := d.up.Load()
	if s == nil {
		var err error
		if s, err = d.retry(ctx); s == nil {
			return d.ofDevice(err)
		}
	}
	go d.reload(s)
	log := d.report.log.Asked
	err := s.backend.Serve(ctx, s.listener)
	if err != nil && d.config.Name != "" {
		log.Error("the device is not served any more", "cause", err)
	}
	// A close may go on in the background. Whoever does not want to wait for it is in Set.Run.
	_ = s.model.WaitClosed(context.Background())
	log.Info("ended")
	return d.ofDevice(errors.Join(err, s.close()))
}

// retry opens the device, and makes its socket, again and again until that works. nil, without an
// error, where ctx ends before.
func (d *Device) retry(ctx context.Context) (*stack, error) {
	if _, err := d.notServed(); errors.Is(err, errSilent) {
		a, _ := d.awaitFirst(context.Background())
		if s, err := d.take(ctx, a); s != nil || ctx.Err() != nil {
			return s, err
		}
	}
	for wait := d.host.again; ; wait = min(2*wait, lastAgain) {
		d.plan(time.Now().Add(wait))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-d.again:
			// Whoever asks has done something about it, and may not be done.
			wait = d.host.again / 2
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil, nil
		}
		d.plan(time.Time{})
		s, err := d.open(ctx)
		if s, err := d.take(ctx, attempt{s, err}); s != nil || ctx.Err() != nil {
			return s, err
		}
	}
}

// take makes the socket of a device that was opened, and says why it is not served otherwise. When
// ctx has ended, it is not to be served any more.
func (d *Device) take(ctx context.Context, a attempt) (*stack, error) {
	err := a.err
	if err == nil && ctx.Err() != nil {
		return nil, a.stack.close()
	}
	if err == nil {
		err = d.listen(a.stack)
	}
	switch {
	case err == nil:
		return a.stack, nil
	case ctx.Err() == nil:
		d.notYet(err)
	}
	return nil, nil
}

// reload looks at what is served again when that is asked for. It may take as long as storage does,
// and must keep nobody from asking why, nor from another device.
func (d *Device) reload(s *stack) {
	for {
		select {
		case <-d.again:
			s.model.Reload()
		case <-d.host.ended:
			return
		}
	}
}

// askAgain has the device opened now where it is not served, and else looked at again. What was
// asked for and not done yet is done once.
func (d *Device) askAgain() {
	select {
	case d.again <- struct{}{}:
	default:
	}
}

// close takes down what is not open, and closes the socket. Further calls do nothing.
func (s *stack) close() (err error) {
	s.closing.Do(func() {
		if s.listener != nil {
			s.listener.Close() // Serve has, where it was called
		}
		err = s.model.Close()
	})
	return err
}

// tellSilent puts into the log that the device's storage does not answer. alone: nothing is served
// without it.
func (d *Device) tellSilent(alone bool) {
	log := d.report.log.Asked
	if about := d.config.Kind.About(); alone {
		log.Warn("nothing is served yet: storage does not answer", about...)
	} else {
		log.Warn("the device is not served yet: its storage does not answer; it is served when it does", about...)
	}
}

// notYet says why the device is not served, where that is news.
func (d *Device) notYet(err error) {
	d.mu.Lock()
	news := d.why.Error() != err.Error()
	d.why = err
	d.mu.Unlock()
	if news {
		const text = "the device is not served"
		d.report.log.Asked.Error(text, "cause", err, "tried_again_within", lastAgain)
		d.report.add("log", "", text, err)
	}
}

func (d *Device) plan(next time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next = next
}

// notServed tells why a device that is not up is not served, and when it is tried again, in
// seconds.
func (d *Device) notServed() (in float64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.next.IsZero() {
		in = max(0, time.Until(d.next).Seconds())
	}
	return in, d.why
}

// impossible is the answer to everything that needs a device that is served.
func (d *Device) impossible() error {
	in, err := d.notServed()
	if errors.Is(err, errSilent) {
		return control.Impossible("the device is not served yet: %v", err)
	}
	wait := time.Duration(in * float64(time.Second)).Round(time.Millisecond)
	return control.Impossible("the device is not served: %v (it is tried again in %v; SIGHUP has it tried now)", err, wait)
}

// Model implements control.Target.
func (d *Device) Model() (any, error) {
	if s := d.up.Load(); s != nil {
		return s.model, nil
	}
	return nil, d.impossible()
}

// Trace implements control.Target.
func (d *Device) Trace() (control.Trace, *trace.Log) {
	return control.Trace{
		Name: d.config.Name, Process: "vdev " + cmp.Or(d.config.Name, d.config.Kind.Title()), PID: os.Getpid(),
	}, d.report.life
}

// Revoke implements control.Target: it takes the device from the guest as specfs does, with all
// block and character devices that it has. What is in progress, and what the guest asks for then,
// fails until the guest starts the device anew.
func (d *Device) Revoke(ctx context.Context) error {
	s := d.up.Load()
	if s == nil {
		return d.impossible()
	}
	open := s.open()
	if len(open) == 0 {
		return control.Impossible("the device is not open: no guest uses it")
	}
	return d.commands.Wait(ctx, func() error {
		return d.commands.Do("revoke", func() error {
			// One that hangs holds up no other one.
			var all sync.WaitGroup
			for _, o := range open {
				all.Go(func() { s.fs.RevokeDevice(o.Mode, o.Dev) })
			}
			all.Wait()
			return nil
		})
	})
}

// open gives the block and character devices that are open, or being opened or closed.
func (s *stack) open() []specfs.DeviceStatus {
	return slices.DeleteFunc(s.fs.Devices(), func(o specfs.DeviceStatus) bool { return o.Opens == 0 && !o.Closing })
}

// moving is told that the front-end begins to move the guest. It waits for nothing.
func (d *Device) moving() {
	s := d.up.Load()
	if s == nil {
		return // it is not there yet, and neither is a front-end
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	f := s.backend.Status(now).FrontEnd
	s.model.Moving(f != nil && f.Inflight && f.Protocol&vhostuser.ProtocolGetVringBaseInflight != 0)
}
