package virtq_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// crashMem is all the memory of a life: a ring of up to 16 descriptors and a buffer.
const crashMem = 1 << 14

// entry is a request: an entry of the available ring.
type entry struct {
	id   int
	head uint16
}

// life is a ring whose device side is killed again and again, between any two of its stores, and
// what must be true of it. At each store the test also looks what a successor would find, on a
// copy.
type life struct {
	t      *rapid.T
	mem    *virtqtest.Mem
	memory *virtq.Memory
	driver *virtqtest.Driver
	region []byte
	queue  *virtq.Queue
	seg    []virtqtest.Seg
	killAt int // stores until the process is killed; 0 for not at all
	stores int // in this life
	graves []*grave
	serial int
	open   []entry   // shown by the driver, and not seen used, in order
	pushed []entry   // of those, pushed since used.idx was looked at last, in order
	next   []entry   // what is to be popped next, in order
	listed int       // how many of them are suspended: the first ones
	flight []*flying // in the order of popping
	used   uint16    // used.idx when it was looked at last
	lives  int
}

type flying struct {
	entry
	chain virtq.Chain
}

// killed is what kills a life.
type killed struct{}

// grave is where copies are looked at.
type grave struct {
	mem    *virtqtest.Mem
	memory *virtq.Memory
	region []byte
}

func newGrave(t *rapid.T, region int) *grave {
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: crashMem})
	if err != nil {
		t.Fatal(err)
	}
	memory, err := mem.Memory()
	if err != nil {
		t.Fatal(err)
	}
	return &grave{mem, memory, make([]byte, region)}
}

// TestAKillBetweenAnyTwoStoresLosesAndRepeatsNothing: whenever the device side ends, each head that
// the driver has made available and has not got back is popped again by the next one, once, in the
// order of the driver, and no other is.
func TestAKillBetweenAnyTwoStoresLosesAndRepeatsNothing(t *testing.T) {
	for _, size := range []int{1, 2, 4, 16} {
		t.Run(fmt.Sprintf("size=%d", size), func(t *testing.T) { testLives(t, size) })
	}
}

func testLives(t *testing.T, size int) {
	rapid.Check(t, func(t *rapid.T) {
		features := rapid.SampledFrom([]uint64{0, modern}).Draw(t, "features")
		main := newGrave(t, virtq.InflightSize(size))
		l := &life{t: t, mem: main.mem, memory: main.memory, region: main.region}
		for range 2 {
			l.graves = append(l.graves, newGrave(t, len(l.region)))
		}
		defer func() {
			l.bury()
			for _, g := range append(l.graves, main) {
				g.memory.Release()
				g.mem.Close()
			}
		}()
		l.driver = virtqtest.New(l.mem, size, features)
		l.used = rapid.SampledFrom([]uint16{0, 65535, 65530}).Draw(t, "first index")
		l.driver.StartAt(l.used)
		l.seg = []virtqtest.Seg{{Addr: l.mem.Alloc(8, 8), Len: 8}}
		l.start()
		t.Repeat(map[string]func(*rapid.T){
			"":        l.check,
			"add":     l.add,
			"pop":     l.pop,
			"popAll":  l.popAll,
			"push":    l.push,
			"pushAll": l.pushAll,
			"unpop":   l.unpop,
			"suspend": l.suspend,
			"unfetch": func(*rapid.T) { l.unfetch() },
			"publish": func(*rapid.T) { l.do(func() { l.queue.Publish() }) },
			"show":    func(*rapid.T) { l.do(func() { l.queue.Show() }) },
			"take":    func(*rapid.T) { l.driver.Used() },
			"stop":    l.stop,
			"kill":    func(t *rapid.T) { l.killAt = rapid.IntRange(1, 12).Draw(t, "stores") },
			"killNow": func(*rapid.T) { l.bury(); l.start() },
		})
	})
}

// start begins the next life, and may be killed in it.
func (l *life) start() {
	for {
		l.lives++
		l.settle()
		l.next = slices.Clone(l.open)
		if l.alive(func() {
			var err error
			if l.queue, err = virtq.New(l.memory, virtq.Stored(l.config(l.region), l.stored)); err != nil {
				l.t.Fatal(err)
			}
		}) {
			break
		}
	}
	l.listed = l.queue.Suspended()
}

// config is the ring's, with a base that is wrong: with a region nobody looks at it.
func (l *life) config(region []byte) virtq.Config {
	cfg := l.driver.Layout()
	cfg.Base, cfg.Inflight = 12345, region
	return cfg
}

// alive runs a part of the device, and reports false if it was killed in it.
func (l *life) alive(f func()) (alive bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(killed); !ok {
				panic(r)
			}
			alive = false
		}
	}()
	f()
	return true
}

// do runs a part of the device, and begins another life if it was killed in it.
func (l *life) do(f func()) {
	if l.alive(f) {
		l.settle()
		return
	}
	l.bury()
	l.start()
}

// bury ends a life: what was in flight is forgotten.
func (l *life) bury() {
	l.queue.Close()
	for _, f := range l.flight {
		// Only the count is kept: the memory's references must come to an end.
		l.queue.Push(&f.chain, 0)
	}
	l.flight = nil
	l.pushed = l.pushed[:l.shown(l.driver.UsedIdx())]
}

// shown returns how many of pushed a used index shows.
func (l *life) shown(idx uint16) int {
	n := int(idx - l.used)
	if n > len(l.pushed) {
		l.t.Fatalf("used.idx moved by %d with %d pushed", n, len(l.pushed))
	}
	return n
}

// settle takes note of what the driver can see.
func (l *life) settle() {
	idx := l.driver.UsedIdx()
	n := l.shown(idx)
	l.open = l.without(n)
	l.pushed, l.used = l.pushed[n:], idx
}

// without returns open less the first n of pushed.
func (l *life) without(n int) []entry {
	return slices.DeleteFunc(slices.Clone(l.open), func(e entry) bool { return slices.Contains(l.pushed[:n], e) })
}

// stored is called after each store.
func (l *life) stored() {
	l.stores++
	l.inquest(0, l.mem, l.region)
	if l.killAt == 0 {
		return
	}
	if l.killAt--; l.killAt == 0 {
		panic(killed{})
	}
}

// inquest looks what a successor finds if the process ends here. Being killed itself, in the midst
// of its recovery, it must leave the same to the next one.
func (l *life) inquest(depth int, mem *virtqtest.Mem, region []byte) {
	if depth >= len(l.graves) {
		return
	}
	g := l.graves[depth]
	copy(g.mem.Bytes(0, crashMem), mem.Bytes(0, crashMem))
	copy(g.region, region)
	size := len(l.driver.DescBytes()) / virtqtest.DescSize
	usedIdx := binary.LittleEndian.Uint16(l.usedBytes(g)[2:])
	want := l.without(l.shown(usedIdx))

	if binary.LittleEndian.Uint16(region[8:]) != 0 {
		list := recoverBySpecification(slices.Clone(region), usedIdx)
		for i, head := range list {
			if i >= len(want) || want[i].head != head {
				l.t.Fatalf("by the specification %v are in flight, want the first of %v", list, want)
			}
		}
	}

	q, err := virtq.New(g.memory, virtq.Stored(l.config(g.region), func() { l.inquest(depth+1, g.mem, g.region) }))
	if err != nil {
		l.t.Fatalf("depth %d: %v", depth, err)
	}
	defer q.Close()
	// The stores of its recovery have been looked at, and those from here on are as in any life.
	graves := l.graves
	l.graves = nil
	defer func() { l.graves = graves }()
	var got []uint16
	chains := make([]virtq.Chain, size+1)
	for i := range chains {
		ok, err := q.Pop(&chains[i])
		if err != nil {
			l.t.Fatal(err)
		}
		if !ok {
			break
		}
		got = append(got, chains[i].Head)
	}
	for i := range got {
		q.Push(&chains[i], 0)
	}
	if fmt.Sprint(got) != fmt.Sprint(heads(want)) {
		l.t.Fatalf("life %d, store %d: the successor pops %v, want %v", l.lives, l.stores, got, heads(want))
	}
}

func heads(entries []entry) []uint16 {
	var list []uint16
	for _, e := range entries {
		list = append(list, e.head)
	}
	return list
}

// usedBytes returns the used ring in a grave.
func (l *life) usedBytes(g *grave) []byte {
	layout := l.driver.Layout()
	base := g.mem.UserAddr(0)
	return g.mem.Bytes(layout.Used-base, 4)
}

// recoverBySpecification is the specification's "When reconnecting", word by word, as any other
// back-end has it. It returns the heads to resubmit.
func recoverBySpecification(region []byte, usedIdx uint16) []uint16 {
	field := func(off int) uint16 { return binary.LittleEndian.Uint16(region[off:]) }
	desc := func(i uint16) []byte { return region[16+16*int(i):][:16] }
	if known := field(14); known != usedIdx {
		i := field(12)
		for range usedIdx - known {
			desc(i)[0] = 0
			i = binary.LittleEndian.Uint16(desc(i)[6:])
		}
	}
	var list []uint16
	for i := range field(10) {
		if desc(i)[0] == 1 {
			list = append(list, i)
		}
	}
	counter := func(i uint16) uint64 { return binary.LittleEndian.Uint64(desc(i)[8:]) }
	slices.SortFunc(list, func(a, b uint16) int {
		if counter(a) < counter(b) {
			return -1
		}
		return 1
	})
	return list
}

func (l *life) add(t *rapid.T) {
	for range rapid.IntRange(1, 4).Draw(t, "requests") {
		head, ok := l.driver.Add(l.seg, nil)
		if !ok {
			break
		}
		l.serial++
		e := entry{l.serial, head}
		l.open = append(l.open, e)
		l.next = append(l.next, e)
	}
	l.driver.Kick()
}

func (l *life) pop(t *rapid.T) {
	f := new(flying)
	l.do(func() {
		ok, err := l.queue.Pop(&f.chain)
		if err != nil {
			l.t.Fatal(err)
		}
		if ok != (len(l.next) > 0) {
			l.t.Fatalf("Pop = %v with %v to take", ok, l.next)
		}
		if !ok {
			return
		}
		f.entry, l.next = l.next[0], l.next[1:]
		l.listed = max(l.listed-1, 0)
		if f.chain.Head != f.head {
			l.t.Fatalf("head %d, want %d", f.chain.Head, f.head)
		}
		l.flight = append(l.flight, f)
	})
}

func (l *life) popAll(t *rapid.T) {
	for n := len(l.next); n > 0; n-- {
		l.pop(t)
	}
}

func (l *life) push(t *rapid.T) {
	if len(l.flight) == 0 {
		t.Skip("nothing in flight")
	}
	l.pushOne(rapid.IntRange(0, len(l.flight)-1).Draw(t, "which"))
}

func (l *life) pushOne(i int) {
	f := l.flight[i]
	l.flight = slices.Delete(l.flight, i, i+1)
	l.pushed = append(l.pushed, f.entry)
	l.do(func() { l.queue.Push(&f.chain, 0) })
}

func (l *life) pushAll(t *rapid.T) {
	order := rapid.Permutation(slices.Clone(l.flight)).Draw(t, "order")
	for _, f := range order {
		if i := slices.Index(l.flight, f); i >= 0 {
			l.pushOne(i)
		}
	}
}

func (l *life) unpop(t *rapid.T) {
	for n := rapid.IntRange(1, 3).Draw(t, "how many"); n > 0; n-- {
		last := len(l.flight) - 1
		if last < 0 || !l.queue.CanUnpop(&l.flight[last].chain) {
			return
		}
		f := l.flight[last]
		l.flight = l.flight[:last]
		l.await(f.entry)
		l.do(func() {
			l.queue.Unpop(&f.chain)
			l.listed = l.queue.Suspended() // it may have gone to either
		})
	}
}

// await enters e, which was fetched, among those that are to be popped next.
func (l *life) await(e entry) {
	i := 0
	for i < len(l.next) && l.next[i].id < e.id {
		i++
	}
	l.next = slices.Insert(l.next, i, e)
}

func (l *life) suspend(t *rapid.T) {
	if len(l.flight) == 0 {
		t.Skip("nothing in flight")
	}
	l.suspendOne(rapid.IntRange(0, len(l.flight)-1).Draw(t, "which"))
}

func (l *life) suspendOne(i int) {
	f := l.flight[i]
	l.flight = slices.Delete(l.flight, i, i+1)
	l.await(f.entry)
	before := slices.Clone(l.region)
	l.queue.Suspend(&f.chain)
	if !slices.Equal(l.region, before) {
		l.t.Fatal("Suspend has changed the region")
	}
	l.listed++
}

func (l *life) unfetch() {
	l.do(func() { l.listed -= l.queue.Unfetch(nil) })
}

// stop is GET_VRING_BASE: some requests are unpopped or have ended, the others are suspended, in
// any order.
func (l *life) stop(t *rapid.T) {
	l.killAt = 0
	l.unpop(t)
	for _, f := range rapid.Permutation(slices.Clone(l.flight)).Draw(t, "order") {
		i := slices.Index(l.flight, f)
		if rapid.Bool().Draw(t, "completed") {
			l.pushOne(i)
			continue
		}
		l.suspendOne(i)
	}
	if rapid.Bool().Draw(t, "unfetched") {
		l.unfetch()
	}
	l.do(func() { l.queue.Publish() })
	l.check(t)
	if got := l.queue.NextAvail(); got != l.used {
		t.Fatalf("NextAvail = %d of a stopped ring, want used.idx, %d", got, l.used)
	}
	l.queue.Close()
	l.start()
}

func (l *life) check(t *rapid.T) {
	if got, want := l.queue.InFlight(), len(l.flight); got != want {
		t.Fatalf("InFlight = %d, want %d", got, want)
	}
	marked := 0
	for i := range len(l.driver.DescBytes()) / virtqtest.DescSize {
		marked += int(l.region[16+16*i])
	}
	if got, want := l.queue.Suspended(), l.listed; got != want || marked != got+len(l.flight)+len(l.pushed) {
		t.Fatalf("Suspended = %d, want %d; %d in flight, %d pushed, %d marked", got, want, len(l.flight), len(l.pushed), marked)
	}
	if got, want := l.queue.Pending(), len(l.next) > 0; got != want {
		t.Fatalf("Pending = %v with %v to take", got, l.next)
	}
	if got, want := l.queue.NextAvail(), l.used+uint16(len(l.pushed)+len(l.flight)); got != want {
		t.Fatalf("NextAvail = %d, want %d", got, want)
	}
	if err := l.queue.Broken(); err != nil {
		t.Fatal(err)
	}
}
