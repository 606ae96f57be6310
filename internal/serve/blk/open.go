package blk

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"vdev/internal/serve"
	"vdev/internal/serve/faulty"
	"vdev/vhostuser/virtioblk"
)

const (
	// serverTasks are a qemu-nbd's: 64 that transfer, its own, and vdev's thread that waits for its
	// end; and those of its witness.
	serverTasks = 81
	// leastServer is what it has while nobody asks anything of it: 4, and its witness, which is Go,
	// 12.
	leastServer = 16
)

var _ serve.Kind = Disk{}

// Programs implements serve.Kind.
func (d Disk) Programs(ctx context.Context) (least, most int) {
	return programs(ctx, func() bool {
		settled, err := settle(d.Driver, func(string) {})
		return err == nil && settled.Name == "qemu"
	})
}

// programs counts the tasks of a qemu-nbd where there is one. A disk whose storage does not answer
// until ctx ends counts as having one.
func programs(ctx context.Context, hasServer func() bool) (least, most int) {
	has := make(chan bool, 1)
	go func() { has <- hasServer() }()
	select {
	case one := <-has:
		if !one {
			return 0, 0
		}
	case <-ctx.Done():
	}
	return leastServer, serverTasks
}

// Open implements serve.Kind.
func (d Disk) Open(ctx context.Context, p serve.Parts) (serve.Model, error) {
	m, err := d.open(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", d.Flag, err)
	}
	return m, nil
}

func (d Disk) open(ctx context.Context, p serve.Parts) (_ *model, err error) {
	if d.Driver, err = settle(d.Driver, p.Warn); err != nil {
		return nil, err
	}
	s, err := d.openStorage(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.detach())
		}
	}()
	var learner atomic.Pointer[virtioblk.Device] // nil until there is one
	s.notify(func(_ int, err error) {
		// A vdev after this one is to know of a loss even if no request of the guest's meets it.
		if d := learner.Load(); d != nil && err != nil {
			d.Learn()
		}
		tellServer(p.Log.Vital, err)
	})
	log := p.Log.Asked
	for _, text := range s.warnings() {
		log.Warn(text)
	}
	info, err := s.info()
	if err != nil {
		return nil, err
	}
	if info.Size == 0 {
		log.Warn("the disk has no bytes: a guest can do nothing with it before it is made larger")
	}
	c := virtioblk.Config{
		FS: p.FS, Dev: s.dev, Info: s.info, Serial: d.Serial, NumQueues: d.NumQueues, SegMax: d.SegMax,
		Pool: (*virtioblk.Pool)(p.Pool), Log: p.Note, Keeper: s.keeper(), Ended: s.ended(), SizeChanged: p.ConfigChanged,
		Failed: func(q virtioblk.Request) { p.Log.Found.Warn("storage has failed a request", "request", q.String()) },
	}
	if p.Trace != nil {
		c.Trace = func(q virtioblk.Request) { p.Trace(q) }
	}
	device, err := virtioblk.New(c)
	if err != nil {
		return nil, err
	}
	learner.Store(device)
	m := &model{disk: d, parts: p, storage: s, info: info, device: device}
	m.Rules = faulty.Rules{Commands: p.Commands, Control: m.fault}
	return m, nil
}
