package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/devsw/disk"
)

// greeting is what a newstyle server begins with.
func greeting(flags uint16) []byte {
	p := binary.BigEndian.AppendUint64(nil, nbdMagic)
	p = binary.BigEndian.AppendUint64(p, optMagic)
	return binary.BigEndian.AppendUint16(p, flags)
}

// optReply makes a reply to an option.
func optReply(opt, kind uint32, data []byte) []byte {
	p := binary.BigEndian.AppendUint64(nil, optReplyMagic)
	p = binary.BigEndian.AppendUint32(p, opt)
	p = binary.BigEndian.AppendUint32(p, kind)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	return append(p, data...)
}

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func TestHandshakeThatGoesWrongSaysHow(t *testing.T) {
	unsup := func(opt uint32) []byte { return optReply(opt, repErrUnsup, nil) }
	begin := join(greeting(flagFixedNewstyle|flagNoZeroes), unsup(optExtendedHeaders), unsup(optStructuredReply))
	info := func(size uint64) []byte {
		p := binary.BigEndian.AppendUint64([]byte{0, infoExport}, size)
		return optReply(optGo, repInfo, binary.BigEndian.AppendUint16(p, hasFlags))
	}
	blocks := func(low, pref, high uint32) []byte {
		p := binary.BigEndian.AppendUint32([]byte{0, infoBlockSize}, low)
		p = binary.BigEndian.AppendUint32(p, pref)
		return optReply(optGo, repInfo, binary.BigEndian.AppendUint32(p, high))
	}
	tests := map[string]struct {
		say  []byte
		want string
		e    devsw.Errno
	}{
		"no NBD":            {[]byte("SSH-2.0-OpenSSH_9.9\r\n"), "no NBD server", syscall.EPROTO},
		"oldstyle":          {binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, nbdMagic), oldStyleMagic), "oldstyle", devsw.EOPNOTSUPP},
		"other magic":       {binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, nbdMagic), 7), "instead of IHAVEOPT", syscall.EPROTO},
		"not fixed":         {greeting(0), "not the fixed one", devsw.EOPNOTSUPP},
		"hangs up":          {greeting(flagFixedNewstyle), "hangs up during the handshake", syscall.ECONNRESET},
		"other option":      {join(greeting(flagFixedNewstyle), unsup(optAbort)), "a reply to option 2", syscall.EPROTO},
		"huge reply":        {join(greeting(flagFixedNewstyle), optReply(optExtendedHeaders, repAck, make([]byte, 5*maxString))), "a reply of", syscall.EPROTO},
		"wants TLS":         {join(greeting(flagFixedNewstyle), optReply(optExtendedHeaders, repErrTLSReqd, []byte("no\x1b[31m"))), "nbds://", devsw.EACCES},
		"no export":         {join(begin, optReply(optGo, repErrUnknown, []byte("which?"))), "there is no such export", devsw.ENOENT},
		"policy":            {join(begin, optReply(optGo, repErrPolicy, nil)), "policy", devsw.EACCES},
		"shutting down":     {join(begin, optReply(optGo, repErrShutdown, nil)), "shutting down", syscall.ESHUTDOWN},
		"extended only":     {join(begin, optReply(optGo, repErrExtHeaderReqd, nil)), "extended headers", devsw.EOPNOTSUPP},
		"error to come":     {join(begin, optReply(optGo, 1<<31+99, nil)), "error 0x80000063", devsw.EACCES},
		"no size":           {join(begin, optReply(optGo, repAck, nil)), "without NBD_INFO_EXPORT", syscall.EPROTO},
		"too large":         {join(begin, info(1<<63)), "an export of 9223372036854775808 bytes", syscall.EPROTO},
		"short info":        {join(begin, optReply(optGo, repInfo, []byte{0, infoExport, 0})), "NBD_INFO_EXPORT of 3 bytes", syscall.EPROTO},
		"odd blocks":        {join(begin, info(testSize), blocks(3, 4096, 1<<20)), "block sizes", syscall.EPROTO},
		"endless":           {join(begin, []byte(strings.Repeat(string(info(testSize)), maxInfos+1))), "more than 128 replies", syscall.EPROTO},
		"large blocks":      {join(begin, info(testSize), blocks(4096, 4096, 1<<20), optReply(optGo, repAck, nil)), "(--logical-block-size 4096)", devsw.EINVAL},
		"empty":             {join(begin, info(0), optReply(optGo, repAck, nil)), "less than a sector", devsw.EINVAL},
		"refused by name":   {join(begin, unsup(optGo)), "hangs up during the handshake", syscall.ECONNRESET},
		"another reply":     {join(begin, optReply(optGo, 77, nil)), "reply 0x4d", syscall.EPROTO},
		"acknowledges more": {join(greeting(flagFixedNewstyle), optReply(optExtendedHeaders, repInfo, nil)), "reply 0x3", syscall.EPROTO},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "nbd")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				nc, err := l.Accept()
				if err != nil {
					return
				}
				defer nc.Close()
				_, _ = nc.Write(tt.say)
				_ = nc.(*net.UnixConn).CloseWrite()
				_, _ = io.Copy(io.Discard, nc)
			}()
			defer func() { l.Close(); <-gone }()
			r := newRig(t)
			_, err = r.d.Create(0, Config{URI: "nbd+unix:///?socket=" + url.QueryEscape(path)})
			if !errors.Is(err, tt.e) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, want %v that says %q", err, tt.e, tt.want)
			}
			if err != nil && strings.ContainsRune(err.Error(), 0x1b) {
				t.Errorf("the server's message gets through as it is: %q", err)
			}
		})
	}
}

func TestOpenWaitsForAServerThatComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nbd")
	s := nbdkitAt(t, path, "memory", "size=1M")
	r := newRig(t)
	patient := r.create(Config{URI: s.uri(), ReconnectDelay: 30 * time.Second})
	brief := r.create(Config{URI: s.uri(), ReconnectDelay: 30 * time.Millisecond})
	hasty := r.create(Config{URI: s.uri()})
	s.kill()
	for _, dev := range []devsw.Dev{brief, hasty} {
		if err := r.table.BdevOpen(dev, rw, devsw.IFBLK); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("without a server: %v", err)
		}
	}
	opened := make(chan error, 2)
	for range 2 {
		go func() { opened <- r.table.BdevOpen(patient, rw, devsw.IFBLK) }()
	}
	for !r.claimed(patient) {
		time.Sleep(time.Millisecond)
	}
	if err := r.table.CdevOpen(devsw.Makedev(uint32(r.table.CdevswLookupMajor(r.table.CdevswLookup(r.table.Blk2chr(patient)))), 0), rw, devsw.IFCHR); !errors.Is(err, devsw.EBUSY) {
		t.Errorf("through the other device: %v", err)
	}
	nbdkitAt(t, path, "memory", "size=1M")
	for range 2 {
		if err := <-opened; err != nil {
			t.Errorf("with one: %v", err)
		}
	}
	r.close(patient)
}

func TestOpenThatWaitsForAServerCanBeCancelled(t *testing.T) {
	s := nbdkit(t, "memory", "size=1M")
	r := newRig(t)
	dev := r.create(Config{URI: s.uri(), ReconnectDelay: time.Hour})
	s.kill()
	opened := make(chan error, 2)
	for range 2 {
		go func() { opened <- r.table.BdevOpen(dev, rw, devsw.IFBLK) }()
	}
	for !r.claimed(dev) {
		time.Sleep(time.Millisecond)
	}
	r.cancel(dev)
	for range 2 {
		if err := <-opened; !errors.Is(err, devsw.ECANCELED) {
			t.Errorf("it ends with %v", err)
		}
	}
	if err := r.table.BdevClose(dev, rw, devsw.IFBLK); err != nil {
		t.Error(err)
	}
}

func TestServerThatComesBackWithAnotherExportIsNotTaken(t *testing.T) {
	good := export{size: testSize, flags: hasFlags | sendFlush | canMultiConn}
	for name, change := range map[string]func(e *export){
		"smaller":       func(e *export) { e.size /= 2 },
		"read-only":     func(e *export) { e.flags |= readOnly },
		"without flush": func(e *export) { e.flags &^= sendFlush },
	} {
		m := &medium{Base: disk.NewBase(devsw.DiskInfo{Size: testSize}), exp: &good}
		other := good
		change(&other)
		if err := m.fits(&other); err == nil {
			t.Errorf("%s: it is taken", name)
		}
		if err := m.fits(&good); err != nil {
			t.Errorf("the same is not taken: %v", err)
		}
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nbd")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		_, err := dial(ctx, &target{network: "unix", address: path})
		ended <- err
	}()
	nc, err := l.Accept() // and not a word
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
}

func TestCreateEndsWithItsContext(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	f := newFake(t, structuredMode)
	f.refusals.Store(1 << 20)
	go func() {
		_, err := r.d.CreateContext(ctx, 0, Config{URI: f.uri(), ReconnectDelay: time.Hour})
		ended <- err
	}()
	for f.refusals.Load() == 1<<20 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
}
