package mutants

import "time"

var _ = add("console", []mutant{
	{
		what: "a terminal's log goes down the stairs",
		file: "cmd/vdev/serve.go",
		from: "\treturn crlfWriter{f}\n",
		to:   "\treturn f\n",
		by:   tests{in: "./cmd/vdev", run: "^TestTheTerminalThatVdevIsStartedInIsTheConsole$"},
	},
	{
		what: "the escape does not end vdev",
		file: "cmd/vdev/serve.go",
		from: "\t\t\tstop()\n\t\t} else {",
		to:   "\t\t} else {",
		by:   tests{in: "./cmd/vdev", run: "^TestTheTerminalThatVdevIsStartedInIsTheConsole$"},
	},
	{
		what: "who is attached may have any number of bytes unread",
		file: "internal/control/terminal.go",
		from: "typ == frameData && typed+int64(n)-t.taken.Load() <= Unread",
		to:   "typ == frameData && n <= Unread",
		by:   tests{in: "./internal/control", run: "^TestWhoSendsWhatMustNotBeIsTold$", timeout: 60 * time.Second},
	},
	{
		what: "a client is not told what the guest has taken",
		file: "internal/control/terminal.go",
		from: "\tt.taken.Add(int64(n))\n",
		to:   "",
		by:   tests{in: "./internal/control", run: "^TestATerminalShowsAndTakesWhatIsTyped$", timeout: 60 * time.Second},
	},
	{
		what: "who is attached is not told why it is let go",
		file: "internal/control/terminal.go",
		from: "\t_, _ = t.send(append(frame, why...))\n",
		to:   "\t_ = frame\n",
		by:   tests{in: "./internal/control", run: "^TestTheEndOfVdevIsTold$"},
	},
	{
		what: "who watches decides on the size",
		file: "cmd/vdev/ports.go",
		from: "\t\t\t\tpeer = watcher{a}\n",
		to:   "",
		by:   tests{in: "./cmd/vdev", run: "^TestAPersonAttachesToAConsole$"},
	},
	{
		what: "a port that was removed keeps its place",
		file: "internal/serve/console/model.go",
		from: "\terr := m.close(p)\n\tm.release(p)\n",
		to:   "\terr := m.close(p)\n",
		by:   tests{in: "./cmd/vdev", run: "^TestPortsComeAndGoWhileTheGuestRuns$"},
	},
	{
		what: "SIGHUP does not open a port's log again",
		file: "internal/serve/console/model.go",
		from: "\tfor _, p := range m.there() {\n\t\tp.reopen()\n\t}\n",
		to:   "",
		by:   tests{in: "./cmd/vdev", run: "^TestAPortHasATerminalOrASocketAndALog$", timeout: 60 * time.Second},
	},
	{
		what: "a port's socket stays when vdev ends",
		file: "internal/serve/console/model.go",
		from: "\tfor _, p := range ports {\n\t\terr = errors.Join(err, p.endAll())\n\t}\n",
		to:   "",
		by:   tests{in: "./cmd/vdev", run: "^TestAPortHasATerminalOrASocketAndALog$"},
	},
	{
		what: "what hangs on a line is not tried again when it is released",
		file: "internal/dev/fault/line.go",
		from: "\t\tu.notes.Notify(filters[d], -1)\n",
		to:   "",
		by:   tests{in: "./internal/dev/fault", run: "^TestAWriteThatHangsIsTriedAgainWhenItIsReleased$"},
	},
	{
		what: "a cancel leaves what hangs on a line",
		file: "internal/dev/fault/line.go",
		from: "\tu.cv.Cancel()\n",
		to:   "",
		by:   tests{in: "./internal/dev/fault", run: "^TestACancelEndsWhatHangsOnALine$", timeout: 60 * time.Second},
	},
	{
		what: "two ports may have the same file",
		file: "internal/spec/console.go",
		from: "\t\tif what := p.clash(other); what != \"\" {",
		to:   "\t\tif what := p.clash(other); false {",
		by:   tests{in: "./internal/spec", run: "^TestAConsoleThatIsRefusedIsToldWhatWouldBeRight$"},
	},
	{
		what: "a terminal that has gone stays where nobody reads",
		file: "internal/serve/console/terminal.go",
		from: "if a.typed.Empty() {",
		to:   "if false {",
		by:   tests{in: "./internal/serve/console", run: "^TestATerminalThatHasGoneStaysOnlyForWhatItHasTyped$"},
	},
})
