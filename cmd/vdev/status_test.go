package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vdev/internal/control"
)

func TestStatusIsReadable(t *testing.T) {
	in := 4.0
	st := control.Status{
		PID: 42, Version: "v1", Seconds: 3725, LogLevel: "info",
		Socket: "/run/vm1.sock", AIO: "threads", CancelAfter: 1,
		Disk: &control.Disk{
			Driver: "fault on vnd", File: "disk.img", Bytes: 1 << 20, BlockSize: 4096, ReadOnly: true, Serial: "S1",
			Warnings: []string{"it burns", "it smokes"},
		},
		FrontEnd: &control.FrontEnd{PID: 7, UID: 1000, Seconds: 61.4, Features: control.Bits{Value: "0x200", Names: []string{"FLUSH"}},
			Protocol: control.Bits{Value: "0x9", Names: []string{"MQ", "REPLY_ACK"}}, Regions: 2, Memory: 4096, Inflight: true,
			WaitsFor: "GET_VRING_BASE", WaitSeconds: 1.2345},
		Waiting: true, State: "closing", Error: "no disk", CancelIn: &in, Fenced: 2,
		Rings: []control.Ring{
			{Index: 0, State: "stopping", Size: 128, Why: "base", Answered: true, Next: 65535, Used: 65530, InFlight: 5, Oldest: 90, Suspended: 1},
			{Index: 1, State: "running", Size: 256, Answered: true, Next: 2, Used: 2, Pending: true, Resubmitted: 3},
			{Index: 2, State: "broken", Size: 64, Error: "bad head"},
			{Index: 3, State: "running", Size: 64},
			{Index: 4, State: "started", Size: 64},
			{Index: 5, State: "stopped", Size: 64, Suspended: 2},
			{Index: 6, State: "stopped"},
		},
		Devices: []control.Device{{Device: "block 14,0", Driver: "fault", Opens: 2, Opening: 1, Closing: true, InProgress: []control.Operation{
			{What: "ioctl DIOCCACHESYNC", Count: 1, Seconds: 0.0123456}, {What: "strategy", Count: 5}}}},
		Faults: &control.Faults{
			Rules:  []control.FaultRule{{ID: 3, Rule: "hang:any", Matched: 7, Hit: 6}},
			Held:   []control.Held{{Op: "flush", Seconds: 2, Rule: 3, Hangs: true, Uncancellable: true}, {Op: "read", Offset: 512, Bytes: 1024, Rule: 4, Seconds: 0.5}},
			Cached: 9, Off: true,
		},
	}
	const want = `
vdev        process 42, for 1h2m5s, log level info, v1
disk        fault on vnd, disk.img, 1048576 bytes in blocks of 4096, threads, read-only, serial S1
warning     it burns
warning     it smokes
socket      /run/vm1.sock
state       closing: no disk
            is being stopped; requests in flight are cancelled in 4s
            waits for 2 transfers that storage has not completed, fenced from the guest's memory
on a stop   requests in flight are cancelled after 1s, not migratable
front-end   process 7 of user 1000, connected for 1m1s
            waits for the answer to GET_VRING_BASE, for 1.23s
memory      4096 bytes in 2 regions, an in-flight region
features    FLUSH (0x200)
protocol    MQ REPLY_ACK (0x9)
status      none
            another front-end waits to be served
block 14,0  fault, 2 opens (1 in progress), closing
            in progress: ioctl DIOCCACHESYNC, for 12.35ms
            in progress: strategy ×5
fault 3     hang:any, has acted on 6 of 7
            flush hangs uncancellably by rule 3, for 2s
            read of 1024 bytes at 512 is delayed by rule 4, for 500ms
cache       9 sectors that are not flushed
power       off, since a crash
ring  state     size  next   used   in flight  oldest
0     stopping  128   65535  65530  5          1m30s   by base, 1 are suspended
1     running   256   2+     2      0          -       3 were resubmitted
2     broken    64    -      -      -          -       bad head
3     running   64    -      -      -          -       its event loop does not answer
4     started   64    -      -      -          -
5     stopped   64    -      -      -          -       2 are suspended
            1 ring stopped
`
	var b strings.Builder
	if err := writeStatus(&b, st); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), b.String()); diff != "" {
		t.Errorf("the status differs (-want +got):\n%s", diff)
	}
	in = -2
	b.Reset()
	if err := writeStatus(&b, control.Status{CancelIn: &in}); err != nil || !strings.Contains(b.String(), "requests in flight were cancelled 2s ago") {
		t.Errorf("after the deadline: %v\n%s", err, b.String())
	}
}

// full is a disk that is.
type full struct{ room int }

var errFull = errors.New("no space")

func (f *full) Write(p []byte) (int, error) {
	if f.room -= len(p); f.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestStatusTellsThatItCouldNotBeWritten(t *testing.T) {
	st := control.Status{Rings: []control.Ring{{State: "running"}, {State: "stopped"}}}
	var b strings.Builder
	if err := writeStatus(&b, st); err != nil {
		t.Fatal(err)
	}
	for room := range b.Len() {
		if err := writeStatus(&full{room}, st); err != errFull {
			t.Fatalf("with room for %d of %d bytes it returns %v", room, b.Len(), err)
		}
	}
}

func TestTheStatusOfAConsoleIsReadable(t *testing.T) {
	st := control.Status{
		PID: 42, Version: "v1", Seconds: 1, LogLevel: "info", Socket: "/run/vm1.sock", AIO: "io_uring", State: "open",
		Console: &control.Console{Multiport: true, MaxPorts: 4, Queues: 10, ResizeOrder: "rows-first", Ports: []control.Port{
			{ID: 0, Console: true, Driver: "pty /run/vm1.tty", Overflow: "drop", State: "open", GuestReady: true, GuestOpen: true, Attached: true,
				Size: control.Window{Columns: 100, Rows: 40}, Told: control.Window{Columns: 80, Rows: 24}, Output: 123456, Input: 7, Dropped: 9, Kept: 4096,
				Ends: []control.End{{Name: "pty", Output: 123400, Input: 7, Lost: 56, Size: control.Window{Columns: 100, Rows: 40}}, {Name: "log", Watches: true, Output: 123456}}},
			{ID: 3, Name: "org.qemu.guest_agent.0", Driver: "socket /run/a", Overflow: "wait", State: "failed", Error: "no device", GuestReady: true,
				Output: 5, Waiting: 5, Ends: []control.End{{Name: "client", Gone: true, Input: 2}}},
			{ID: 1, Driver: "null", State: "closed"},
		}},
	}
	const want = `
vdev        process 42, for 1s, log level info, v1
console     3 ports of 4, 10 queues (num_vqs), sizes are told rows-first
socket      /run/vm1.sock
state       open
on a stop   nothing of a console is in flight, not migratable
front-end   none
port                      driver              state   guest  size    output  input
0                         pty /run/vm1.tty    open    open   100x40  123456  7      9 bytes were dropped, the guest was told 80x24
                          pty                                100x40  123400  7      has missed 56 bytes
                          log                                -       123456  0      watches
3 org.qemu.guest_agent.0  socket /run/a       failed  ready  -       5       0      5 bytes wait, no device
                          nobody is attached
                          client                             -       0       2      has gone
1                         null                closed  -      -       0       0
                          nobody is attached
`
	var b strings.Builder
	if err := writeStatus(&b, st); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), b.String()); diff != "" {
		t.Errorf("the status differs (-want +got):\n%s", diff)
	}
	for room := range b.Len() {
		if err := writeStatus(&full{room}, st); err != errFull {
			t.Fatalf("with room for %d of %d bytes it returns %v", room, b.Len(), err)
		}
	}
}
