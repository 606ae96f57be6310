package mutants

import "time"

const (
	engineURingGo = "internal/reactor/engine_uring.go"
	guardGo       = "internal/reactor/guard.go"
	inlineGo      = "internal/reactor/aio_inline.go"
	aioFileGo     = "internal/reactor/aio_file.go"
	aioSubmitGo   = "internal/reactor/aio_submit.go"
	crewGo        = "internal/reactor/aio_crew.go"
	aioGo         = "internal/reactor/aio.go"
	restGo        = "internal/reactor/rest.go"
	fenceGo       = "internal/sys/fence_unsafe.go"
	signalGo      = "internal/reactor/signal.go"
	turnsGo       = "internal/reactor/aio_turns.go"
	uringGo       = "internal/uring/ring_unsafe.go"
	diskCopyGo    = "devsw/disk/copy.go"
	diskBaseGo    = "devsw/disk/base.go"
	bufIndexGo    = "devsw/bufindex.go"
	vndThreadsGo  = "internal/dev/vnd/threads.go"
)

var _ = add("reactor", []mutant{

	// What storage may hold up is guarded.
	{
		what: "the first write of a file is not guarded", file: inlineGo,
		from: "\tn, errno, kept := r.call(o, r.calls.write)\n",
		to:   "\tif !f.wrote {\n\t\tf.wrote = true\n\t\to.ended(r.calls.write(o.fd, o.iov, o.off))\n\t\treturn true\n\t}\n\tn, errno, kept := r.call(o, r.calls.write)\n",
		and: []edit{
			{aioFileGo, "\tbegun  int           // transfers", "\twrote  bool\n\tbegun  int           // transfers"},
		},
		by: tests{in: "./internal/dev/vnd", run: "TestAFrozenFileSystemHoldsUpNoOtherDisk$/^ext4$/^io_uring,_the_first_write$"},
	},
	{
		what: "later writes are not guarded", file: inlineGo,
		from: "\tn, errno, kept := r.call(o, r.calls.write)\n",
		to:   "\tn, errno := r.calls.write(o.fd, o.iov, o.off)\n\tkept = true\n",
		by:   tests{in: "./internal/dev/vnd", run: "TestAFrozenFileSystemHoldsUpNoOtherDisk$/^ext4$/^threads,_a_later_write$"},
	},
	{
		what: "reads with RWF_NOWAIT are not guarded", file: inlineGo,
		from: "\tn, errno, kept := r.call(o, r.calls.read)\n",
		to:   "\tn, errno := r.calls.read(o.fd, o.iov, o.off)\n\tkept = true\n",
		by:   tests{in: "./internal/reactor", run: "TestAReadThatStallsHoldsUpNoOther$/waits=false", timeout: 20 * time.Second},
	},
	{
		what: "reads without RWF_NOWAIT are not guarded", file: inlineGo,
		from: "\tn, errno, kept := r.call(o, r.calls.readWaiting)\n",
		to:   "\tn, errno := r.calls.readWaiting(o.fd, o.iov, o.off)\n\tkept = true\n",
		by:   tests{in: "./internal/reactor", run: "TestAReadThatStallsHoldsUpNoOther$/waits=true", timeout: 20 * time.Second},
	},
	{
		what: "io_uring_enter is not guarded", file: aioSubmitGo,
		from: "\tword := r.guard.enter()\n\teng.submit()\n\tif !r.guard.leave(word) {\n\t\treturn false\n\t}\n",
		to:   "\teng.submit()\n",
		by:   tests{in: "./internal/reactor", run: "TestASubmissionThatStallsHoldsUpNoOther$"},
	},
	{
		what: "a long read is begun on the reactor", file: aioSubmitGo,
		from: "\tcase o.pieceBytes() > readAhead, f.begun",
		to:   "\tcase f.begun",
		by:   tests{in: "./internal/reactor", run: "TestFewReadsOfAFileAreBegunOnTheReactor$"},
	},
	{
		what: "any number of reads of a file are begun on the reactor", file: aioSubmitGo,
		from: "f.begun >= mostBegun, !r.stoodBy()",
		to:   "!r.stoodBy()",
		by:   tests{in: "./internal/reactor", run: "TestFewReadsOfAFileAreBegunOnTheReactor$"},
	},
	{
		what: "reads are tried in line though the disk has many", file: inlineGo,
		from: "f.stuck == 0 && f.begun < mostBegun && r.stoodBy()",
		to:   "f.stuck == 0 && r.stoodBy()",
		by:   tests{in: "./internal/reactor", run: "TestFewReadsOfAFileAreBegunOnTheReactor$"},
	},
	{
		what: "a write is made with nobody standing by", file: inlineGo,
		from: "r.clock >= f.resume && r.stoodBy()",
		to:   "r.clock >= f.resume",
		by:   tests{in: "./internal/reactor", run: "TestTheReactorIsTakenOverWithoutADescriptor$", timeout: 20 * time.Second},
	},
	{
		what: "a file that is stuck is written in line", file: inlineGo,
		from: "return r.inEngine == 0 && f.stuck == 0 && r.clock",
		to:   "return r.inEngine == 0 && r.clock",
		by:   tests{in: "./internal/reactor", run: "TestAWriteThatStallsHoldsUpNoOther$", timeout: 20 * time.Second},
	},
	{
		what: "what a file that is stuck has goes to the engine", file: aioSubmitGo,
		from: "\tif o.r.stuck > 0 && o.r.of(o).stuck > 0 {",
		to:   "\tif false {",
		by:   tests{in: "./internal/reactor", run: "TestAReadThatStallsHoldsUpNoOther$"},
	},
	{
		what: "a thread that copies is taken for one that waits", file: guardGo,
		from: "idle < guardPatience && sys.Runnable(int(g.thread.Load()))",
		to:   "idle < guardPatience && sys.Runnable(0)",
		by:   tests{in: "./internal/reactor", run: "TestAThreadThatCopiesKeepsItsReactor$"},
	},
	{
		what: "the ring that is lost is not waited for", file: engineURingGo,
		from: "h := <-e.handed; h.left > 0; {",
		to:   "h := <-e.handed; h.left > 1<<20; {",
		by:   tests{in: "./internal/reactor", run: "TestASubmissionThatStallsHoldsUpNoOther$", timeout: 40 * time.Second},
	},
	{
		what: "a lost ring's reads do not count as stuck", file: engineURingGo,
		from: "\t\t\tif o.mayWait || o.aside {\n\t\t\t\tr.isStuck(o)\n\t\t\t}\n",
		to:   "",
		by:   tests{in: "./internal/reactor", run: "TestASubmissionThatStallsHoldsUpNoOther$"},
	},
	{
		what: "the ring always has what may wait", file: engineURingGo,
		from: "\t\te.waiting = append(e.waiting, o)\n\t\treturn\n",
		to:   "",
		by:   tests{in: "./internal/reactor", run: "TestWhatMayWaitIsSubmittedUnderTheGuardAlone$", timeout: 30 * time.Second},
	},
	{
		what: "what SQEAsync starts has no bound", file: uringGo,
		from: "counts := [2]uint32{n, n}",
		to:   "counts := [2]uint32{n, 0}",
		by:   tests{in: "./internal/uring", run: "TestTheKernelsThreadsAreBounded$"},
	},
	{
		what: "a transfer fails for which the kernel has no thread", file: aioGo,
		from: "\tcase errno == syscall.ECANCELED && !o.cancelled && (o.place == inEngine",
		to:   "\tcase false && (o.place == inEngine",
		by:   tests{in: "./cmd/vdev", run: "TestManyRequestsWaitUnderALimitOfTasks$"},
	},

	// The threads of a pool.
	{
		what: "a file has no thread to itself", file: crewGo,
		from: "(w.running < w.max || l.busy == 0) {",
		to:   "(w.running < w.max) {",
		by:   tests{in: "./internal/reactor", run: "TestEachFileHasAThread$", timeout: 30 * time.Second},
	},
	{
		what: "a file's thread goes on with another file", file: crewGo,
		from: "\tif l.first != nil && l.busy == 0 {\n\t\t// Its turn was another's, who may get stuck.\n\t\tw.begin(w.pickAt(slices.Index(w.ready, l)), l)\n\t}\n",
		to:   "\t_ = slices.Index[[]int]\n",
		by:   tests{in: "./internal/reactor", run: "TestEachFileHasAThread$", timeout: 30 * time.Second},
	},
	{
		what: "a file has its threads until it has nothing left", file: crewGo,
		from: "\tw.ready = slices.Delete(w.ready, i, i+1)\n\tif l.first != nil {\n\t\tw.ready = append(w.ready, l)\n\t}\n",
		to:   "\tif l.first == nil {\n\t\tw.ready = slices.Delete(w.ready, i, i+1)\n\t}\n",
		by:   tests{in: "./internal/reactor", run: "TestFilesTakeTurnsOnThreads$"},
	},
	{
		what: "what is stuck takes the threads of the others", file: crewGo,
		from: "\t\treturn c.stuck\n",
		to:   "\t\treturn c.local\n",
		by:   tests{in: "./internal/reactor", run: "TestAReadThatStallsHoldsUpNoOther$"},
	},

	// Long work is done in turns.
	{
		what: "a long transfer is made in one piece", file: turnsGo,
		from: "\tif o.buf.Bcount <= wholeMost {\n\t\treturn o.data\n\t}\n",
		to:   "\tif true {\n\t\treturn o.data\n\t}\n",
		by:   tests{in: "./internal/reactor", run: "TestLongTransfersTakeTurns$"},
	},
	{
		what: "the pieces of a transfer follow each other", file: aioGo,
		from: "\t\t\t\tif o.buf.Bcount > inlineMost {\n\t\t\t\t\to.r.awaitTurn(o)\n\t\t\t\t} else {\n\t\t\t\t\to.start()\n\t\t\t\t}\n",
		to:   "\t\t\t\to.start()\n",
		by:   tests{in: "./internal/reactor", run: "TestLongTransfersTakeTurns$"},
	},
	{
		what: "all long transfers have their turn in one round", file: turnsGo,
		from: "left > 0 && bytes < turnBytes; left--",
		to:   "left > 0; left--",
		by:   tests{in: "./internal/reactor", run: "TestLongTransfersTakeTurns$"},
	},
	{
		what: "a long transfer is not cancelled between its pieces", file: turnsGo,
		from: "\t\tcase o.cancelled:\n\t\t\to.ended(0, syscall.ECANCELED)\n",
		to:   "",
		and: []edit{
			{aioGo, "\t\t\tif !o.cancelled {\n\t\t\t\to.advance(n)", "\t\t\tif true {\n\t\t\t\to.advance(n)"},
		},
		by: tests{in: "./internal/reactor", run: "TestALongTransferIsCancelledBetweenItsPieces$"},
	},
	{
		what: "a cancel does not reach a driver that waits for its turn", file: turnsGo,
		from: "\tif o.cancelled {\n\t\terrno = syscall.ECANCELED\n\t}\n",
		to:   "",
		by:   tests{in: "./internal/reactor", run: "TestADriverHasItsTurnLater$"},
	},
	{
		what: "a ring is looked at for any number of bytes", file: queueGo,
		from: "if bytes += r.bytes; bytes >= budgetBytes || work >= budgetWork {",
		to:   "if bytes += r.bytes; bytes >= 1<<60 || work >= budgetWork {",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestARingIsLookedAtForSoManyBytes$"},
	},
	{
		what: "a driver copies in one turn", file: diskCopyGo,
		from: "k := min(n-off, turnBytes)",
		to:   "k := n - off",
		by:   tests{in: "./devsw/disk", run: "TestALongCopyTakesTurns$"},
	},
	{
		what: "a close does not reach a copy's turns", file: diskCopyGo,
		from: "if e == 0 && m.Cancelled() {",
		to:   "if false {",
		by:   tests{in: "./devsw/disk", run: "TestALongCopyTakesTurns$"},
	},
	{
		what: "a copying driver cancels no single transfer", file: diskBaseGo,
		from: "\tif b.AIO != nil {\n\t\tb.AIO.Cancel(b)\n\t}\n",
		to:   "",
		by:   tests{in: "./devsw/disk", run: "TestALongCopyTakesTurns$"},
	},

	// What is cancelled is found at once.
	{
		what: "the index of what is cancelled is made each time", file: bufIndexGo,
		from: "if x.of == nil || x.begun != begun {",
		to:   "if true {",
		by:   tests{in: "./devsw", run: "TestBufIndexIsMadeOnceForManyCancels$"},
	},
	{
		what: "the index has what has ended", file: bufIndexGo,
		from: "\tif delete(x.of, b); len(x.of) == 0 {",
		to:   "\tif len(x.of) == 0 {",
		by:   tests{in: "./devsw", run: "TestBufIndexIsMadeOnceForManyCancels$"},
	},
	{
		what: "the index lacks what has begun since", file: bufIndexGo,
		from: "x.of == nil || x.begun != begun",
		to:   "x.of == nil",
		by:   tests{in: "./devsw", run: "TestBufIndexIsMadeOnceForManyCancels$"},
	},
	{
		what: "the reactor searches for what it is to cancel", file: aioGo,
		from: "\to, ok := r.opOf.Find(b, uint64(r.requests), func(yield func(*devsw.Buf, *op) bool) {",
		to:   "\tvar x devsw.BufIndex[*op]\n\to, ok := x.Find(b, 0, func(yield func(*devsw.Buf, *op) bool) {",
		by:   tests{in: "./internal/reactor", run: "TestManyCancelsSearchOnce$"},
	},
	{
		what: "a BufSet searches for what it is to cancel", file: bufsetGo,
		from: "\tt, ok := s.tickets.Find(",
		to:   "\tvar x BufIndex[Ticket]\n\tt, ok := x.Find(",
		by:   tests{in: "./devsw", run: "TestManyCancelsSearchOnce$"},
	},
	{
		what: "vnd's threads search for what is to be cancelled", file: vndThreadsGo,
		from: "\te, ok := t.in.Find(",
		to:   "\tvar none devsw.BufIndex[*list.Element]\n\te, ok := none.Find(",
		by:   tests{in: "./internal/dev/vnd", run: "TestManyCancelsSearchOnce$"},
	},
	{
		what: "a ring's requests are cancelled in one turn", file: queueGo,
		from: "stopTurn = 2048",
		to:   "stopTurn = 1 << 30",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestCancelTakesTurns$"},
	},

	// A host that refuses a part of io_uring.
	{
		what: "a ring is not tried", file: uringGo,
		from: "if err := r.try(); err != nil {",
		to:   "if err := error(nil); err != nil {",
		by:   tests{in: "./internal/reactor", run: "TestAHostThatRefusesAPartOfIOUringIsKnownAtTheStart$|TestRefused$"},
	},
	{
		what: "a refusal to bound the kernel's threads is passed over", file: engineURingGo,
		from: "err != nil && !errors.Is(err, syscall.EINVAL) {",
		to:   "err != nil && !errors.Is(err, err) {",
		by:   tests{in: "./internal/reactor", run: "TestAHostThatRefusesAPartOfIOUringIsKnownAtTheStart$|TestRefused$"},
	},

	// File systems that know no RWF_NOWAIT.
	{
		what: "reads on tmpfs go to the engine", file: inlineGo,
		from: "\t\tf.waits = true\n\t\treturn r.readWaiting(o, f)\n",
		to:   "\t\to.start()\n\t\treturn true\n",
		by:   tests{in: "./internal/reactor", run: "TestCachedReadsOfTmpfsAreMadeInLine$"},
	},
	{
		what: "reads that had to wait are made in line again", file: inlineGo,
		from: "if r.Now()-t.begun > slowRead+time",
		to:   "if r.Now()-t.begun < 0*slowRead+0*time",
		by:   tests{in: "./internal/reactor", run: "TestReadsThatHadToWaitAreLeftToTheEngine$"},
	},
	{
		what: "any number of reads are taken on trust", file: inlineGo,
		from: "f.trust = mostTimed - t.reads",
		to:   "f.trust = 1 << 20",
		by:   tests{in: "./internal/reactor", run: "TestReadsThatBeginToWaitAreSoonLeftToTheEngine$"},
	},
	{
		what: "the clock is looked at for each read", file: inlineGo,
		from: "\t\tf.trust = mostTimed - t.reads\n", to: "",
		by: tests{in: "./internal/reactor", run: "TestTheClockIsLookedAtForEightReads$"},
	},

	// Turns of owners.
	{
		what: "who was woken is armed before it has had its turn", file: restGo,
		from: "\t\tcase s.due:\n\t\t\tpending = true // it has had no turn since\n\t\t\treturn true\n", to: "",
		by: tests{in: "./internal/reactor", run: "TestWhoIsWokenHasItsTurnBeforeItRests$"},
	},
	{
		what: "the reactor sleeps with transfers that it has not submitted", file: restGo,
		from: "len(r.turns) > 0 || r.eng.waits() {", to: "len(r.turns) > 0 {",
		by: tests{in: "./internal/reactor", run: "TestAReactorDoesNotSleepWithWhatItHasNotSubmitted$"},
	},

	// Writes to eventfds of front-ends.
	{
		what: "a signal that waits is not ended", file: signalGo,
		from: "\t\t\t\tif s.waits() {\n",
		to:   "\t\t\t\tif false {\n",
		by:   tests{in: "./vhostuser", run: "TestAnEventfdThatWaitsEndsItsConnectionAndNothingElse$/^call$/^io_uring$", timeout: 20 * time.Second},
	},
	{
		what: "a signal that waits is not interrupted", file: signalGo,
		from: "\t// The write may not have begun to wait yet: it finds the signal then, or the other file.\n\t_ = sys.Interrupt(s.tid)\n",
		to:   "",
		by:   tests{in: "./vhostuser", run: "TestAnEventfdThatWaitsEndsItsConnectionAndNothingElse$/^call$/^io_uring$", timeout: 20 * time.Second},
	},
	{
		what: "a slow signal that does not wait is not begun anew", file: signalGo,
		from: "\t\t\t\t\t_ = sys.Interrupt(s.tid)\n",
		to:   "",
		by:   tests{in: "./internal/reactor", run: "TestASignalIsBegunAnewWhereItsEventfdIsReplaced$", timeout: 30 * time.Second},
	},
	{
		what: "a busy reader is taken for one that makes wait", file: signalGo,
		from: "func (s *signals) waits() bool { return !sys.Writable(s.fd) }",
		to:   "func (s *signals) waits() bool { return true }",
		by:   tests{in: "./internal/reactor", run: "TestASignalIsBegunAnewWhereItsEventfdIsReplaced$"},
	},

	// What a reactor has worked, for Pick.
	{
		what: "to sleep is work", file: restGo,
		from: "\tr.idled += slept\n", to: "",
		by: tests{in: "./internal/reactor", run: "TestToWaitIsNoWork$/^sleeps$"},
	},
	{
		what: "to look in vain is work", file: restGo,
		from: "\t\t\tr.idled += r.looked\n\t\t\treturn false, nil", to: "\t\t\treturn false, nil",
		by: tests{in: "./internal/reactor", run: "TestToWaitIsNoWork$/^looks_in_vain$"},
	},
	{
		what: "to look until there is work is work", file: restGo,
		from: "\t\t\t\tr.idled += r.looked\n\t\t\t\treturn true, nil", to: "\t\t\t\treturn true, nil",
		by: tests{in: "./internal/reactor", run: "TestToWaitIsNoWork$/^looks$"},
	},
	{
		what: "what is done with a transfer that has ended is rest", file: restGo,
		from: "\tr.eng.sleep(timeout)\n", to: "\tr.eng.sleep(timeout)\n\tr.eng.turn()\n",
		by: tests{in: "./internal/reactor", run: "TestToWaitIsNoWork$/^sleeps,_a_transfer$"},
	},

	// A fence keeps the kernel off the file behind a mapping.
	{
		what: "a fence leaves the file in its place", file: fenceGo,
		from: "\terr := fence(mapping, keep)\n",
		to:   "\tvar err error\n\tif mapping == nil {\n\t\terr = fence(mapping, keep)\n\t}\n",
		by:   tests{in: "./internal/sys", run: "TestAFenceKeepsTheKernelOff$"},
	},
	{
		what: "a fence keeps nothing", file: fenceGo,
		from: "\t\tcopyOut(staging+off, k)\n", to: "",
		by: tests{in: "./internal/sys", run: "TestAFenceKeepsTheKernelOff$"},
	},
	{
		what: "there is nothing at a fence's addresses for a moment", file: fenceGo,
		from: "\t\tsize := uintptr(len(mapping))\n",
		to:   "\t\tsize := uintptr(len(mapping))\n\t\t_, _, _ = unix.Syscall(unix.SYS_MUNMAP, address(mapping), size, 0)\n",
		by:   tests{in: "./internal/sys", run: "TestAFenceKeepsTheKernelOff$"},
	},
})
