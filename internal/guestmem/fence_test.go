package guestmem_test

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
)

// TestAFencedRegionIsPrivate: its content goes over, as far as it is kept, the other mapping and
// the file are the guest's as before, and all of it is unmapped with the last reference.
func TestAFencedRegionIsPrivate(t *testing.T) {
	fd := file(t, "fenced", 8*page)
	old := mustMap(t, 0x10000, 4*page+100, 0x70000, page+8, fd)
	again, err := old.Again()
	if err != nil {
		t.Fatal(err)
	}
	if !again.Is(0x10000, 4*page+100, 0x70000) || again.MmapOffset != page+8 || &again.Bytes()[0] == &old.Bytes()[0] {
		t.Error("the region is not the same one mapped anew")
	}
	copy(old.Bytes()[page:], "kept")
	if got := again.Bytes()[page : page+4]; string(got) != "kept" {
		t.Errorf("mapped anew the region has %q", got)
	}
	p := old.Bytes()
	if err := old.Fence([][]byte{p[page : page+4]}); err != nil {
		t.Fatal(err)
	}
	if got := p[page : page+4]; string(got) != "kept" {
		t.Errorf("the copy is %q", got)
	}
	copy(again.Bytes()[page:], "new!")
	if got := p[page : page+4]; string(got) != "kept" {
		t.Errorf("after the guest has written the copy is %q", got)
	}
	for i := range p {
		p[i] = 0xee
	}
	whole := make([]byte, 8*page)
	if _, err := syscall.Pread(again.FD().Int(), whole, 0); err != nil {
		t.Fatal(err)
	}
	if bytes.IndexByte(whole, 0xee) >= 0 || !bytes.Equal(again.Bytes()[page:page+4], []byte("new!")) {
		t.Error("what is written to the fenced region is in the guest's memory")
	}
	old.Release()
	if n := mapped(t, "fenced"); n != 1 {
		t.Errorf("%d mappings of the file, want that of the new region", n)
	}
	if again.FD().Int() == -1 {
		t.Error("the new region's descriptor went with the old region")
	}
	again.Release()
	if n := mapped(t, "fenced"); n != 0 {
		t.Errorf("%d mappings left", n)
	}
}

func TestARegionWhoseFileWasCutOffIsNotMappedAnew(t *testing.T) {
	fd := file(t, "cut", 2*page)
	r := mustMap(t, 0x1000, 2*page, 0x7000, 0, fd)
	defer r.Release()
	if err := syscall.Ftruncate(fd.Int(), page); err != nil {
		t.Fatal(err)
	}
	before := mapped(t, "cut")
	again, err := r.Again()
	var re *guestmem.RegionError
	if again != nil || !errors.Is(err, guestmem.ErrShort) || !errors.As(err, &re) || re.GuestPhys != 0x1000 {
		t.Errorf("Again = %v, %v", again, err)
	}
	if err := r.Fence([][]byte{r.Bytes()[page:]}); !errors.Is(err, syscall.EFAULT) || !errors.As(err, &re) {
		t.Errorf("Fence = %v", err)
	}
	if n := mapped(t, "cut"); n != before {
		t.Errorf("%d mappings, %d before", n, before)
	}
}

func TestHoldingFindsTheRegionOfThisGeneration(t *testing.T) {
	fd := func() *sys.FD { return file(t, "holding", 4*page) }
	a := mustMap(t, 0x10000, 2*page, 0x70000, 0, fd())
	b := mustMap(t, 0x20000, 2*page, 0x80000, 2*page, fd())
	// A part of the same guest memory.
	c := mustMap(t, 0x20000, page, 0x80000, 2*page, fd())
	from, err := guestmem.New(a, b)
	if err != nil {
		t.Fatal(err)
	}
	to, err := guestmem.New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Release()
	defer to.Release()
	for _, r := range []*guestmem.Region{a, b, c} {
		r.Release()
	}
	if r := from.Holding(b.Bytes()[5:6]); r != b {
		t.Errorf("Holding = %v", r)
	}
	if r := from.Holding(b.Bytes()); r != b {
		t.Errorf("Holding the whole region = %v", r)
	}
	for what, p := range map[string][]byte{"Go's memory": make([]byte, 1), "another generation's": c.Bytes()[:1]} {
		if r := from.Holding(p); r != nil {
			t.Errorf("Holding of %s = %v", what, r)
		}
	}
}
