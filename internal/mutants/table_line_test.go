package mutants

import "time"

const (
	lineGo   = "devsw/line/line.go"
	keptGo   = "devsw/line/kept.go"
	inputGo  = "devsw/line/input.go"
	lineDrv  = "devsw/line/driver.go"
	sockGo   = "internal/dev/sock/sock.go"
	clientGo = "internal/dev/sock/client.go"
	readyGo  = "internal/ready/ready.go"
)

// lineTests are some of the tests of lines. One that hangs has noticed the defect.
func lineTests(run string) tests {
	return tests{in: "./devsw/line", run: run, timeout: 40 * time.Second, args: "-rapid.nofailfile -rapid.shrinktime=1ms"}
}

func sockTests(run string) tests {
	return tests{in: "./internal/dev/sock", run: run, timeout: 40 * time.Second}
}

var _ = add("line", []mutant{
	{"the oldest bytes stay", lineGo,
		"\tl.dropLocked(k.tail + int64(n-l.conf.Scrollback))\n", "", nil, lineTests("^TestWhoAttaches")},
	{"who attaches sees only what comes", lineGo,
		"\tb.cur.pos = l.kept.head\n", "\tb.cur.pos = l.kept.tail\n", nil, lineTests("^TestWhoAttaches")},
	{"who is overtaken goes on with bytes that have gone", keptGo,
		"\tc.pos += lost\n", "", nil, lineTests("^TestKept|^TestAConsole")},
	{"what was taken is given again", keptGo,
		"\tc.pos += int64(n)\n", "", nil, lineTests("^TestKept")},
	{"a chunk is filled again while it is written", keptGo,
		"\t\tc.at.refs++\n", "\t\tc.at.refs = max(c.at.refs, 2)\n", nil, lineTests("^TestKept")},
	{"a data line drops", lineGo,
		"\t\tif l.conf.Overflow == Wait {\n\t\t\tif n", "\t\tif l.conf.Overflow == Wait && false {\n\t\t\tif n", nil, lineTests("^TestADataLine")},
	{"a console waits", lineGo,
		"\t\tif l.conf.Overflow == Wait {\n\t\t\tif n", "\t\tif true {\n\t\t\tif n", nil, lineTests("^TestAConsole")},
	{"what a watcher has not taken is waited for", lineGo,
		"\treturn l.conf.Scrollback - int(l.kept.tail-l.reached)\n", "\treturn l.conf.Scrollback - int(l.kept.tail-l.kept.head)\n",
		nil, lineTests("^TestOutputIs")},
	{"nobody is told of room", lineGo,
		"\tl.movedLocked()\n\tl.mu.Unlock()\n\tif roomier {", "\tl.movedLocked()\n\tl.mu.Unlock()\n\tif false && roomier {",
		nil, lineTests("^TestAWriteThat")},
	{"a write that found no room is forgotten", lineGo,
		"n < u.Resid {\n\t\t\t\tl.full = true", "n < u.Resid && false {\n\t\t\t\tl.full = true", nil, lineTests("^TestAWriteThat|^TestOutputIs")},
	{"what is taken by who goes is given again", lineGo,
		"b == l.main || b.stake == leaving ||", "b == l.main ||", nil, lineTests("^TestTheNextGets")},
	{"the next begins while the last one still takes", lineGo,
		"b.stake == fresh && l.leaving == 0", "b.stake == fresh", nil, lineTests("^TestTheNextGets")},
	{"a large write passes what is kept", lineGo,
		"|| len(l.ends) > 1 || l.kept.head < l.kept.tail {", "|| len(l.ends) > 1 {", nil, lineTests("^TestALargeWrite|^TestOutputIs")},
	{"a large write passes a watcher", lineGo,
		"|| len(l.ends) > 1 || l.kept.head", "|| l.kept.head", nil, lineTests("^TestALargeWrite|^TestOutputIs")},
	{"what the main end has taken directly is given again", lineGo,
		"\tu.Advance(n)\n\tl.kept.skip(int64(n))\n", "\tl.kept.skip(int64(n))\n", nil, lineTests("^TestALargeWrite|^TestOutputIs")},
	{"what the main end has taken directly is waited for", lineGo,
		"\tl.reached, b.cur.pos = l.kept.tail, l.kept.tail\n", "\tb.cur.pos = l.kept.tail\n", nil, lineTests("^TestALargeWrite|^TestOutputIs")},
	{"a large write is copied", lineGo,
		"\tb.direct, _ = e.(Direct)\n", "", nil, lineTests("^TestALargeWrite")},
	{"a console's output is taken directly", lineGo,
		"if l.conf.Overflow != Wait || u.Resid < passBytes", "if u.Resid < passBytes", nil, lineTests("^TestAConsolesOutput")},
	{"input is told of once", inputGo,
		"\t\tb.ready = false //", "\t\tb.ready = true //", nil, lineTests("^TestAReadThat")},
	{"nobody is told of input", inputGo,
		"\tif !known {\n\t\tin.line.tell(devsw.EVFILTRead)", "\tif !known && in.turn < 0 {\n\t\tin.line.tell(devsw.EVFILTRead)",
		nil, lineTests("^TestAReadThat")},
	{"who has gone waits for his turn", inputGo,
		"\t\tif b.state == hungup && b.ready {", "\t\tif false {", []edit{{inputGo, "b.state == seated && b.ready", "b.ready"}},
		lineTests("^TestInputComes")},
	{"a cancel leaves d_read asleep", lineDrv,
		"\tf(l.input.cv)\n", "", nil, lineTests("^TestACancel")},
	{"a cancel leaves d_write asleep", lineDrv,
		"\tf(l.room)\n", "", nil, lineTests("^TestACancel")},
	{"the oldest terminal has the size", lineGo,
		"\t\t\tl.size = *s\n", "\t\t\tl.size = *s\n\t\t\tbreak\n", nil, lineTests("^TestTheNewest")},
	{"a log counts as somebody", lineGo,
		"return b.role == Main && b.state == seated", "return b.state == seated", nil, lineTests("^TestALineIsHungUp")},
	{"memory that vanishes is no matter", lineGo,
		"\terr := k.write(u, n)\n", "\terr := k.write(u, n)\n\terr = nil\n", nil, lineTests("^TestMemory")},
	{"who comes back finds his own connection", sockGo,
		"\t\tother.look()\n", "\t\t_ = other.look\n", nil, sockTests("^TestAThousand")},
	{"what a client has sent goes with it", clientGo,
		"&& c.scratch == nil {", "&& c.scratch == nil && false {", nil, sockTests("^TestWhatAClient")},
	{"a client that only sends is cut off", clientGo,
		"errors.Is(err, syscall.EAGAIN)", "errors.Is(err, syscall.EFAULT)", nil, sockTests("^TestAClientThatDoesNotReceive")},
	{"a client that stops sending is gone", clientGo,
		"readClosed && !c.halves", "readClosed", nil, sockTests("^TestAClientThatHasNoMore")},
	{"a watch does not see what is there", readyGo,
		"\t\tevents |= sys.EpollInput\n", "\t\tevents |= sys.EpollReadClosed\n", nil,
		tests{in: "./internal/ready", timeout: 30 * time.Second}},
})
