// Package qtest has QEMU's own virtio-serial served to a guest driver that is no virtual machine's.
//
// QEMU runs without a processor (its qtest accelerator), and with guest memory that this process
// has, too. Registers are written, and interrupts seen, over a socket. What the guest driver sees
// is a vhost-user back-end: a bridge in this process has each message do to QEMU's device what it
// would do to a back-end. Rings and buffers are shared, as with any back-end, and nothing is
// copied on the way. A kick is a line that QEMU reads and answers, and so is the end of an
// interrupt: some microseconds of its time more than with a processor's help, once for a batch.
package qtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"vdev/internal/child"
	"vdev/virtq/virtqtest"
)

// Config says what QEMU is to have.
type Config struct {
	QEMU string // the program
	Dir  string // an empty folder for sockets
	CPU  child.CPU
	Log  func(error) // what went wrong with a front-end
}

// Memory of the guest, in bytes.
const memory = 1 << 30

// maxPorts is the device's max_nr_ports.
const maxPorts = 2

// base is where the device's registers are: its transport is the last of 8.
const base = 0xfeb00e00

// QEMU is a process that was started.
type QEMU struct {
	*child.Process
	// Memory is the guest's.
	Memory *virtqtest.Mem
	// Host is the socket at which the port's other side is to be had.
	Host string

	conn *net.UnixConn
	file *os.File // conn's, which blocks: nothing else has to wake up first
	log  func(error)

	sessions sync.WaitGroup // front-ends

	mu      sync.Mutex
	answers []func(value uint64) // what is done with the answers that are to come, in order
	failed  error
	raised  func() // what is done when interrupts were acknowledged; nil for nothing

	done chan struct{} // closed when the reader has ended
}

// startTime is how long QEMU may take to start.
const startTime = 30 * time.Second

// Start starts QEMU. The caller ends it with Close.
func Start(ctx context.Context, conf Config) (_ *QEMU, err error) {
	q := &QEMU{Host: filepath.Join(conf.Dir, "host"), log: conf.Log, done: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.Close(ctx))
		}
	}()
	socket := filepath.Join(conf.Dir, "qtest")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	if q.Memory, err = virtqtest.NewMem(virtqtest.Range{Size: memory}); err != nil {
		return nil, err
	}
	size := strconv.Itoa(memory)
	q.Process, err = child.Program{CPU: conf.CPU, Args: []string{conf.QEMU, "-nodefaults", "-display", "none",
		"-machine", "microvm,ioapic2=off,accel=qtest,memory-backend=ram", "-m", strconv.Itoa(memory >> 20),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%s,mem-path=/proc/%d/fd/%d,share=on", size, os.Getpid(), q.Memory.FD()),
		"-global", "virtio-mmio.force-legacy=false",
		"-qtest", "unix:" + socket, "-qtest-log", "none",
		"-chardev", "socket,id=host,server=on,wait=off,path=" + q.Host,
		"-device", fmt.Sprintf("virtio-serial-device,max_ports=%d", maxPorts),
		"-device", "virtserialport,nr=1,chardev=host,name=data"}}.Start()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { ln.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	go func() { // a QEMU that has ended does not connect
		<-q.Ended()
		ln.SetDeadline(time.Unix(1, 0))
	}()
	ln.SetDeadline(time.Now().Add(startTime))
	if q.conn, err = ln.AcceptUnix(); err != nil {
		return nil, q.Error(err)
	}
	if q.file, err = q.conn.File(); err != nil {
		return nil, err
	}
	go q.read()
	if _, err := q.ask("irq_intercept_in ioapic"); err != nil {
		return nil, q.Error(err)
	}
	if id, err := q.ask(fmt.Sprintf("readl %#x", base+regDeviceID)); err != nil || id != deviceID {
		return nil, q.Error(fmt.Errorf("there is device %d, and no virtio-serial: %w", id, err))
	}
	return q, nil
}

// Close ends QEMU.
func (q *QEMU) Close(ctx context.Context) error {
	var err error
	if q.conn != nil {
		q.sessions.Wait()
		_ = q.conn.CloseRead() // it fails where QEMU has hung up, and so has read
		if q.file != nil {
			<-q.done
			q.file.Close()
		}
		q.conn.Close()
	}
	if q.Process != nil {
		err = q.Stop(ctx)
	}
	if q.Memory != nil {
		q.Memory.Close()
	}
	return err
}

// send sends a command, and has answer called with what comes back, on the reader's goroutine.
func (q *QEMU) send(line []byte, answer func(value uint64)) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.failed != nil {
		return q.failed
	}
	q.answers = append(q.answers, answer)
	_, err := q.file.Write(line)
	return err
}

// ask sends a command, and waits for what comes back.
func (q *QEMU) ask(line string) (uint64, error) {
	got := make(chan uint64, 1)
	if err := q.send([]byte(line+"\n"), func(v uint64) { got <- v }); err != nil {
		return 0, err
	}
	select {
	case v := <-got:
		return v, nil
	case <-q.done:
		return 0, q.failed
	}
}

// read reads what QEMU says, until it hangs up.
func (q *QEMU) read() {
	runtime.LockOSThread()
	defer close(q.done)
	err := q.listen()
	q.mu.Lock()
	q.failed = err
	q.mu.Unlock()
}

var (
	ok     = []byte("OK")
	irq    = []byte("IRQ raise")
	irqLow = []byte("IRQ lower")
	hush   = fmt.Appendf(nil, "writel %#x 0x3\n", base+regInterruptACK)
)

func (q *QEMU) listen() error {
	// The line stays up until the interrupt is acknowledged. Who is told before that may look at
	// the rings too early.
	acknowledged := func(uint64) {
		q.mu.Lock()
		raised := q.raised
		q.mu.Unlock()
		if raised != nil {
			raised()
		}
	}
	r := bufio.NewReader(q.file)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("qtest: %w", err)
		}
		line = bytes.TrimSpace(line)
		switch {
		case bytes.HasPrefix(line, irq):
			if err := q.send(hush, acknowledged); err != nil {
				return err
			}
		case bytes.HasPrefix(line, irqLow):
		case bytes.HasPrefix(line, ok):
			q.mu.Lock()
			if len(q.answers) == 0 {
				q.mu.Unlock()
				return errors.New("qtest: an answer to nothing")
			}
			answer := q.answers[0]
			q.answers = q.answers[:copy(q.answers, q.answers[1:])]
			q.mu.Unlock()
			if answer == nil {
				continue
			}
			var v uint64
			if word := line[len(ok):]; len(word) > 0 {
				v, _ = strconv.ParseUint(strings.TrimSpace(string(word)), 0, 64)
			}
			answer(v)
		default:
			return fmt.Errorf("qtest: %s", line)
		}
	}
}

// onInterrupt has do called at each interrupt from now on, on the reader's goroutine.
func (q *QEMU) onInterrupt(do func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.raised = do
}

func (q *QEMU) set(reg int, v uint32) error {
	_, err := q.ask(fmt.Sprintf("writel %#x %#x", base+reg, v))
	return err
}

func (q *QEMU) get(reg int) (uint32, error) {
	v, err := q.ask(fmt.Sprintf("readl %#x", base+reg))
	return uint32(v), err
}
