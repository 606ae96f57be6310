package specfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// mutant is a defect: a change of one file that the tests must notice.
type mutant struct {
	what string
	file string // from the module's root
	from string // stands in the file exactly once
	to   string
}

const (
	nodeGo    = "specfs/node.go"
	fsGo      = "specfs/fs.go"
	sectionGo = "specfs/section.go"
	drainGo   = "specfs/drain.go"
	tableGo   = "devsw/table.go"
	opsGo     = "specfs/ops.go"
	bdevGo    = "devsw/bdev.go"
	refGo     = "devsw/ref.go"
	bufGo     = "devsw/buf.go"
	cvGo      = "devsw/cv.go"
	bufsetGo  = "devsw/bufset.go"
	lcGo      = "devsw/localcount.go"
)

var mutants = []mutant{
	{"drain before cancel", nodeGo,
		"\tcancelErr := ref.Cancel(flag, k.kind)", "\tdrain(counts)\n\tcancelErr := ref.Cancel(flag, k.kind)"},
	{"close before drain", nodeGo,
		"\t\tfs.drain(k, counts)\n\t\tstep(\"drained\")", "\t\tfs.drain(k, nil)\n\t\tstep(\"drained\")"},
	{"no drain", drainGo,
		"\t\t_ = c.Drain(context.Background())", "\t\t_ = c"},
	{"no drain after a close without cancel", nodeGo,
		"\tif cancelErr != nil {\n\t\tfs.drain(k, counts)", "\tif cancelErr != nil {\n\t\tfs.drain(k, nil)"},
	{"cancel called twice", nodeGo,
		"\tcancelErr := ref.Cancel(flag, k.kind)", "\t_ = ref.Cancel(flag, k.kind)\n\tcancelErr := ref.Cancel(flag, k.kind)"},
	{"cancel skipped on revoke", nodeGo,
		"\tcancelErr := ref.Cancel(flag, k.kind)", "\tvar cancelErr error = devsw.ENODEV\n\tif flag&devsw.FNONBLOCK == 0 {\n\t\tcancelErr = ref.Cancel(flag, k.kind)\n\t}"},
	{"what is not there cancelled", nodeGo,
		"\tif ref == nil {\n\t\tfs.drain(k, counts)\n\t\treturn nil\n\t}\n\tdefer ref.Release()\n", "\tif ref != nil {\n\t\tdefer ref.Release()\n\t}\n"},
	{"without a driver no drain", nodeGo,
		"\tif ref == nil {\n\t\tfs.drain(k, counts)\n", "\tif ref == nil {\n\t\tfs.drain(k, nil)\n"},
	{"a driver that may go between cancel and close", nodeGo,
		"\tcancelErr := ref.Cancel(flag, k.kind)", "\tcancelErr := ref.Cancel(flag, k.kind)\n\tref.Release()\n\tstep(\"no reference\")\n\tif ref = fs.acquire(k); ref == nil {\n\t\tdrain(counts)\n\t\treturn nil\n\t}"},
	{"a driver that may go before the last drain", nodeGo,
		"\tfs.event(k, EventClosed, err)\n\tstep(\"closed\")", "\tfs.event(k, EventClosed, err)\n\tref.Release()\n\tdefer ref.Release()\n\tdefer fs.acquire(k)\n\tstep(\"closed\")"},
	{"detach that does not wait for references", tableGo,
		"\tdrainAll(all, func(a *attached) *Localcount { return &a.refs })\n", ""},
	{"detach that lets references be taken", tableGo,
		"\t\ta.refs.Close()\n", "\t\t_ = a\n"},
	{"section ended when strategy returns", sectionGo,
		"\tstep(\"strategy returned\")\n", "\tstep(\"strategy returned\")\n\tb.SetSection(nil)\n\tc.count.Release()\n"},
	{"section of a transfer not as long as strategy", sectionGo,
		"\n\tstep(\"strategy entered\")", "\n\tc.count.Release()\n\tdefer c.count.Acquire()\n\tstep(\"strategy entered\")"},
	{"one transfer cancelled outside of a section", opsGo,
		"\to, ok := n.enter(\"cancel of a transfer\")\n\tif !ok {\n\t\treturn devsw.ENXIO\n\t}\n\tdefer n.leave(o)\n", ""},
	{"one transfer cancelled without the one lock", bdevGo,
		"\tt.enter(d.Flag)\n\tdefer t.exit(d.Flag)\n\td.CancelBuf(b)", "\td.CancelBuf(b)"},
	{"a transfer cancelled by itself stays in the set", bufsetGo,
		"\tdelete(s.bufs, t)\n\ts.tickets.Ended(b)\n\treturn ok\n", "\t_ = t\n\ts.tickets.Ended(b)\n\treturn ok\n"},
	{"section entered after gone", nodeGo,
		"\tn.gone = true\n\tn.admitLocked(false)", "\tn.gone = true"},
	{"section entered after closing", nodeGo,
		"\tfor m := range sd.nodes {\n\t\tm.admitLocked(false)\n\t}\n", "\tn.admitLocked(true)\n"},
	{"section entered after the node's last close", nodeGo,
		"\tif n.done--; n.done == 0 {\n\t\tn.admitLocked(false)\n\t}", "\tn.done--"},
	{"enter reads closing before it publishes its count", lcGo,
		"\treturn l.v.Add(n*lcUnit)&lcClosed == 0 || l.refuse(n)",
		"\tif l.v.Load()&lcClosed != 0 {\n\t\treturn false\n\t}\n\tstep(\"acquire\")\n\tl.v.Add(n * lcUnit)\n\treturn true"},
	{"a refused enter that stays counted", lcGo,
		"\tl.ReleaseN(n)\n\treturn false", "\treturn false"},
	{"a transfer counted once", sectionGo,
		"!c.count.AcquireN(2)", "!c.count.AcquireN(1)"},
	{"a batch that does not see the close", sectionGo,
		"\tif c.count.Closed() {\n\t\treturn false\n\t}\n", ""},
	{"a batch without a section of its own", sectionGo,
		"\tif c.held <= 1 {", "\tif c.held <= 0 {"},
	{"a batch that keeps what it holds", sectionGo,
		"\t\tc.count.ReleaseN(int64(held))\n", ""},
	{"a batch that gives back one section", sectionGo,
		"\t\tc.count.ReleaseN(int64(held))\n", "\t\tc.count.Release()\n"},
	{"a transfer left twice in a batch", sectionGo,
		"\t\ts.held++\n\t\treturn\n", "\t\ts.held++\n"},
	{"closing cleared before close", nodeGo,
		"\tfs.event(k, EventClose, nil)\n", "\tfs.mu.Lock()\n\tfs.devs[k].closing = false\n\tfs.mu.Unlock()\n\tfs.event(k, EventClose, nil)\n"},
	{"closing cleared before the last drain", nodeGo,
		"\tstep(\"closed\")\n", "\tstep(\"closed\")\n\tfs.mu.Lock()\n\tfs.devs[k].closing = false\n\tfs.mu.Unlock()\n"},
	{"openers not woken", nodeGo,
		"\tclose(sd.closed)\n", ""},
	{"opencnt taken after d_open", nodeGo,
		"\tsd.opencnt++\n\tn.opencnt++\n\tn.sd = sd", "\tn.sd = sd"},
	{"the open is no section", nodeGo,
		"\terr = fs.devOpen(n.key, flag)\n", "\tsd.opens.Release()\n\terr = fs.devOpen(n.key, flag)\n\tsd.opens.Acquire()\n"},
	{"an open waits for its own section", nodeGo,
		"\tsd.opens.Release()\n\tfs.mu.Lock()", "\tdefer sd.opens.Release()\n\tfs.mu.Lock()"},
	{"failed last open that does not close", nodeGo,
		"case sd.opencnt == 1 && (sd.opened || sd.opens.Count() != 0):", "case false:"},
	{"failed last open that forgets the open of a revoked node", nodeGo,
		"(sd.opened || sd.opens.Count() != 0)", "sd.opened"},
	{"failed first open that closes", nodeGo,
		"case sd.opencnt == 1 && (sd.opened || sd.opens.Count() != 0):", "case sd.opencnt == 1:"},
	{"opened stays set", nodeGo,
		"\tsd.opened = false\n", ""},
	{"a revoked open that succeeds", nodeGo,
		"\tcase n.gone:\n", "\tcase n.gone && err != nil:\n"},
	{"a revoked open that gives d_open's error only", nodeGo,
		"return fmt.Errorf(\"%w (revoked; d_open: %w)\", devsw.EBADF, err)", "return err"},
	{"revoke that forgets a second node", fsGo,
		"\t\t\t\tnodes = append(nodes, n)\n", "\t\t\t\tnodes = append(nodes, n)\n\t\t\t\tbreak\n"},
	{"revoke of a device that forgets nodes for ever", fsGo,
		"\t\tfor _, n := range nodes {\n\t\t\tn.revoke()\n\t\t}\n", "\t\tnodes[0].revoke()\n\t\treturn\n"},
	{"revoke that drops one open", nodeGo,
		"\t\tn.sd.opencnt -= n.opencnt - 1\n\t\tn.opencnt = 1\n", ""},
	{"revoke that does not wait for a close", nodeGo,
		"\tfs.waitClosingUnlock(n.key)\n\tfs.event(n.key, EventRevoked", "\tfs.mu.Unlock()\n\tfs.event(n.key, EventRevoked"},
	{"block open during a close", nodeGo,
		"(sd.opencnt != 0 || sd.closing)", "(sd.opencnt != 0)"},
	{"block open while it is open", nodeGo,
		"(sd.opencnt != 0 || sd.closing)", "(sd.closing)"},
	{"character open during a close", nodeGo,
		"for n.key.kind != devsw.IFBLK && sd.closing {", "for false {"},
	{"an open that waits, of a node that is revoked", nodeGo,
		"\t\tif err == nil && n.gone {\n\t\t\terr = devsw.EBADF\n\t\t}\n", ""},
	{"an open that waited counts on the old device", nodeGo,
		"\t\tsd = fs.getLocked(n.key) // the closed one may have been forgotten\n", ""},
	{"claims not looked at", nodeGo,
		"sd.claim != nil && sd.claim != n {\n\t\treturn nil, nil, devsw.EBUSY", "false {\n\t\treturn nil, nil, devsw.EBUSY"},
	{"ENODEV from cancel treated as success", nodeGo,
		"\tswitch cancelErr {", "\tif cancelErr == devsw.ENODEV {\n\t\tcancelErr = nil\n\t}\n\tswitch cancelErr {"},
	{"an error from cancel not caught", nodeGo,
		"\tdefault:\n\t\tpanic(", "\tdefault:\n\t\t_ = fmt.Sprint("},
	{"nodes with operations in progress forgotten", nodeGo,
		"return n.ops.Count() == 0", "return true"},
	{"devices never forgotten", fsGo,
		"\t\tdelete(fs.devs, sd.devKey)\n", ""},
	{"a transfer with the driver of the open before", nodeGo,
		"\t\t\tn.resolveLocked()\n", "\t\t\tif n.bdev == nil {\n\t\t\t\tn.resolveLocked()\n\t\t\t}\n"},
	{"a driver without DMPSafe called without the lock", nodeGo,
		"d.Flag&devsw.DMPSafe != 0 && d.Strategy != nil", "d.Strategy != nil"},
	{"a released counter let in again", nodeGo,
		"admit && !c.released", "admit"},
	{"transfers of other queues not drained", drainGo,
		"\t\tfor _, c := range n.counters {\n\t\t\tcounts", "\t\tfor _, c := range n.counters[:1] {\n\t\t\tcounts"},
	{"opens not drained", drainGo,
		"[]*devsw.Localcount{&sd.opens}", "[]*devsw.Localcount{}"},
	{"operations not drained", drainGo,
		"\t\tcounts = append(counts, &n.ops)\n", ""},

	{"detach that does not wait for open", tableGo,
		"\tdrainAll(all, func(a *attached) *Localcount { return &a.opens })\n", ""},
	{"detach that lets opens in", tableGo,
		"\t\ta.opens.Close()\n", ""},
	{"detach of an open device", tableGo,
		"return len(a.isOpen) > 0", "return false"},
	{"detach that fails and goes on refusing", tableGo,
		"\t\t\ta.opens.Reopen()\n", ""},
	{"an open device not noted before its reference goes", refGo,
		"\tt.mu.Lock()\n\tdefer t.mu.Unlock()\n\te.isOpen[dev]", "\te.opens.Release()\n\tstep(\"too early\")\n\tdefer e.opens.Acquire()\n\tt.mu.Lock()\n\tdefer t.mu.Unlock()\n\te.isOpen[dev]"},
	{"open without a reference", refGo,
		"e == nil || !e.opens.Acquire()", "e == nil || !e.opens.AcquireN(0)"},
	{"biodone twice", bufGo,
		"case !inContext && atomic.CompareAndSwapUint32(&b.done, 0, 1):", "case !inContext && atomic.SwapUint32(&b.done, 1) < 2:"},
	{"biodone twice in context", bufGo,
		"case inContext && b.done == 0:", "case inContext:"},
	{"the section left before Iodone", bufGo,
		"\tb.section = nil\n\tif b.Iodone", "\tb.section = nil\n\tif section != nil {\n\t\tsection.Leave(inContext)\n\t\tsection = nil\n\t}\n\tif b.Iodone"},
	{"the section of the next use left", bufGo,
		"\tif section != nil {\n\t\tsection.Leave(inContext)", "\tif section != nil && b.section != nil {\n\t\tb.section.Leave(inContext)\n\t} else if section != nil {\n\t\tsection.Leave(inContext)"},
	{"biodone never on cancel", bufsetGo,
		"\t\tif b := s.Claim(t); b != nil {\n\t\t\tb.Fail(ECANCELED)\n\t\t}", "\t\ts.Claim(t)"},
	{"a transfer added after cancel", bufsetGo,
		"\ts.cancelled = true\n", ""},
	{"a transfer ended by both", bufsetGo,
		"\tdelete(s.bufs, t)\n\ts.tickets.Ended(b)\n\treturn b\n", "\ts.tickets.Ended(b)\n\treturn b\n"},
	{"a sleep that misses a cancel that came first", cvGo,
		"\t\tif c.cancelled || c.cancels != began {", "\t\tif c.cancels != began {"},
	{"a sleep that misses a cancel and a reset at once", cvGo,
		"\t\tif c.cancelled || c.cancels != began {", "\t\tif c.cancelled || c.cancels < began {"},
	{"the lock kept while it sleeps", cvGo,
		"\t\tc.l.Unlock()\n\t\tstep(\"sleep\")", "\t\tc.l.Unlock()\n\t\tc.l.Lock()\n\t\tdefer c.l.Unlock()\n\t\tdefer c.l.Lock()\n\t\tstep(\"sleep\")"},
	{"the last to leave does not wake", lcGo,
		"\t\tif l.idle != nil {\n\t\t\tclose(l.idle)\n", "\t\tif l.idle != nil {\n"},
	{"a drain that looks before it says that it drains", lcGo,
		"\tl.drainers++\n\tl.v.Or(lcDrain)\n", "\tif l.v.Load() < lcUnit {\n\t\tl.mu.Unlock()\n\t\treturn nil\n\t}\n\tl.idle = make(chan struct{})\n\tstep(\"drain\")\n\tl.drainers++\n\tdefer l.v.Or(lcDrain)\n"},
	{"a drain that returns while others are in", lcGo,
		"\t\tcase <-idle:\n\t\t\tl.mu.Lock()\n", "\t\tcase <-idle:\n\t\t\tl.mu.Lock()\n\t\t\treturn nil\n"},
}

// TestEveryMutantApplies looks that the code still has what each defect changes; that the tests notice the change is for
// scripts/mutants, which takes its time.
func TestEveryMutantApplies(t *testing.T) {
	files := map[string]string{}
	for _, m := range mutants {
		text, ok := files[m.file]
		if !ok {
			b, err := os.ReadFile(filepath.Join("..", m.file))
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
			files[m.file] = text
		}
		if n := strings.Count(text, m.from); n != 1 {
			t.Errorf("%s: what is to be changed stands %d times in %s", m.what, n, m.file)
		}
	}
}
