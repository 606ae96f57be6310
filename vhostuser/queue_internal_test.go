package vhostuser

import (
	"errors"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
)

// caught returns what f panics with.
func caught(f func()) (r any) {
	defer func() { r = recover() }()
	f()
	return nil
}

func TestOnlyFaultsOnGuestMemoryAreErrors(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	// Two files that end before their mappings do: a front-end's, and somebody else's.
	file, err := sys.NewMemfd("short", int64(2*sys.PageSize()))
	if err != nil {
		t.Fatal(err)
	}
	region, err := guestmem.Map(0, uint64(2*sys.PageSize()), 0, 0, file)
	if err != nil {
		t.Fatal(err)
	}
	defer region.Release()
	own, err := sys.Mmap(file.Int(), 0, 2*sys.PageSize(), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Ftruncate(file.Int(), 1); err != nil {
		t.Fatal(err)
	}
	mem := region.Bytes()
	var sink byte
	var fault *FaultError
	if err := faultError(caught(func() { sink = mem[len(mem)-1] })); !errors.As(err, &fault) {
		t.Errorf("a fault on a front-end's file: %v, want a FaultError", err)
	}

	// Everything else goes on as it was.
	var nothing *[64 << 20]byte
	for name, r := range map[string]any{
		"nil pointer":           caught(func() { sink = nothing[0] }),
		"nil pointer, far away": caught(func() { sink = nothing[32<<20] }),
		"a file of our own":     caught(func() { sink = own[len(own)-1] }),
		"index":                 caught(func() { sink = mem[len(mem)] }),
		"error":                 errors.New("no fault"),
		"string":                "no fault",
	} {
		again := caught(func() { _ = faultError(r) })
		if again != r {
			t.Errorf("%s: panics with %v, want %v", name, again, r)
		}
		if _, ok := r.(runtime.Error); ok && r == nil {
			t.Errorf("%s: no panic at all", name)
		}
	}
	_ = sink
	if err := sys.Munmap(own); err != nil {
		t.Error(err)
	}
}

func TestDispatchTableIsWhole(t *testing.T) {
	for i := range specs {
		sp := &specs[i]
		if findSpec(sp.request) != sp {
			t.Errorf("%v: another entry has its place", sp.request)
		}
		if _, ok := requestNames[sp.request]; !ok {
			t.Errorf("%v: no name", sp.request)
		}
		if _, most := sp.payload.size(); most > maxPayload {
			t.Errorf("%v: payload of %d bytes does not fit", sp.request, most)
		}
		if sp.handle == nil || sp.minFDs > sp.maxFDs || !sp.replies && sp.reply != payloadNone {
			t.Errorf("%v: contradictory entry", sp.request)
		}
	}
	if len(specs) != len(requestNames) {
		t.Errorf("%d entries, %d names", len(specs), len(requestNames))
	}
}
