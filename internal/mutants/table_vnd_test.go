package mutants

const (
	flushGo    = "internal/dev/vnd/flush.go"
	imageGo    = "internal/dev/vnd/image.go"
	vndOpenGo  = "internal/dev/vnd/open.go"
	vndGo      = "internal/dev/vnd/vnd.go"
	geometryGo = "internal/dev/vnd/geometry.go"
	fsTypeGo   = "internal/sys/fstype_linux.go"
	identityGo = "internal/sys/identity_linux.go"
)

var _ = add("vnd", []mutant{

	// What a flush has lost.
	{
		what: "a failed flush is forgotten with the close", file: imageGo,
		from: "\t\tim.syncer.failed = conf.Failures.Look(identity)\n",
		to:   "",
		by:   tests{in: "./internal/dev/vnd", run: "TestAFailedFlushStaysFailed$|TestLostWritesAreNotForgotten$"},
	},
	{
		what: "a failed flush is not on record", file: flushGo,
		from: "s.fail(e) && s.record != nil {",
		to:   "s.fail(e) && false {",
		by:   tests{in: "./internal/dev/vnd", run: "TestAFailedFlushOutlivesTheProcess$"},
	},
	{
		what: "a failed stable write is not on record", file: imageGo,
		from: "\t\t\tim.unrecorded.Store(true)\n",
		to:   "",
		by:   tests{in: "./internal/dev/vnd", run: "TestAStableWriteThatFailsFailsTheFlush$"},
	},
	{
		what: "a failed stable write ends before it is on record", file: flushGo,
		from: "\t\tim.record(im.syncer.failure())\n\t\tb.Biodone()\n",
		to:   "\t\tb.Biodone()\n\t\tim.record(im.syncer.failure())\n",
		by:   tests{in: "./internal/dev/vnd", run: "TestAStableWriteThatFailsFailsTheFlush$"},
	},
	{
		what: "what a close has lost is forgotten", file: imageGo,
		from: "e != devsw.EINTR && im.syncer.fail(e) {",
		to:   "e != devsw.EINTR && false {",
		by:   tests{in: "./internal/dev/vnd", run: "TestWhatACloseHasLostFailsTheNextFlush$"},
	},
	{
		what: "what a predecessor knew is not on record", file: flushGo,
		from: "\t\tim.record(s.FlushError)\n",
		to:   "",
		by:   tests{in: "./internal/dev/vnd", run: "TestAFailedFlushOutlivesTheProcess$"},
	},
	{
		what: "what was cleared goes on failing", file: flushGo,
		from: "\t\tim.syncer.forget()\n",
		to:   "",
		by:   tests{in: "./internal/dev/vnd", run: "TestAFailedFlushOutlivesTheProcess$"},
	},
	{
		what: "a disk that is closed has the state of its last image", file: geometryGo,
		from: "\tif _, err := sc.recognise(img); err != nil {\n\t\treturn devsw.DiskInfo{}, err\n\t}\n",
		to:   "",
		by:   tests{in: "./internal/dev/vnd", run: "TestAFailedFlushStaysFailed$"},
	},
	{
		what: "a disk that was never open has no state", file: vndGo,
		from: "\tif _, err := sc.recognise(img); err != nil {\n\t\treturn nil, err\n\t}\n",
		to:   "\tsc.identity.Store(new(string))\n",
		by:   tests{in: "./internal/dev/vnd", run: "TestAFailedFlushOutlivesTheProcess$|TestAFailedFlushStaysFailed$"},
	},
	{
		what: "a file with the number of another is taken for it", file: identityGo,
		from: "\tif st.Mask&unix.STATX_BTIME != 0 {",
		to:   "\tif false {",
		by:   tests{in: "./internal/dev/vnd", run: "TestAnImageWithTheNumberOfAnotherIsAnother$"},
	},
	{
		what: "a block device with the number of another is taken for it", file: identityGo,
		from: "st.Rdev_minor, diskSequence(f.Int()))",
		to:   "st.Rdev_minor, 0)",
		by:   tests{in: "./internal/dev/vnd", run: "TestAnImageWithTheNumberOfAnotherIsAnother$"},
	},

	// What the host's files can do.
	{
		what: "discards are offered where there are none", file: vndGo,
		from: "!sys.CanPunch(img.FD.Int(), img.Size) {",
		to:   "false {",
		by:   tests{in: "./internal/dev/vnd", run: "TestDiscardsAreOfferedWhereThereAreAny$"},
	},
	{
		what: "to find out about discards makes a hole in the file", file: fsTypeGo,
		from: "PunchHole(fd, (size+block-1)&^(block-1), block)",
		to:   "PunchHole(fd, 0*size, block)",
		by:   tests{in: "./internal/dev/vnd", run: "TestDiscardsAreOfferedWhereThereAreAny$"},
	},
	{
		what: "a file system that is known is asked about discards", file: fsTypeGo,
		from: "unix.Fstatfs(fd, &st) == nil && slices.Contains(punches, int64(uint32(st.Type)))",
		to:   "unix.Fstatfs(fd, &st) == nil && slices.Contains(punches[:0], 0)",
		by:   tests{in: "./internal/dev/vnd", run: "TestToFindOutAboutDiscardsLeavesTheFilesOfKnownFileSystemsAlone$/^ext4$"},
	},
	{
		what: "a block device has sectors of 512 bytes", file: vndGo,
		from: "\tif conf.SectorSize == 0 && img.Block {",
		to:   "\tif false {",
		by:   tests{in: "./internal/dev/vnd", run: "TestABlockDevicesSectorsAreTheDisks$"},
	},
	{
		what: "sectors that were asked for are not had", file: vndGo,
		from: "\tif conf.SectorSize == 0 && img.Block {",
		to:   "\tif img.Block {",
		by:   tests{in: "./internal/dev/vnd", run: "TestABlockDevicesSectorsAreTheDisks$"},
	},
	{
		what: "reads write an access time down", file: vndOpenGo,
		from: "\t_ = file.FD.KeepQuiet()\n",
		to:   "",
		by:   tests{in: "./internal/dev/vnd", run: "TestReadsLeaveTheAccessTimeAlone$"},
	},

	// Writes that wait for a block.
	{
		what: "a write that has part of a block goes beside another one", file: "internal/dev/vnd/ranges.go",
		from: "return c == q.first || c.o.whole && q.first.o.whole }", to: "return c == q.first || c.o.whole }",
		by: tests{in: "./internal/dev/vnd", run: "TestRangesBehaveAsASearchThroughAll$"},
	},
	{
		what: "who waits for a write that was cancelled waits for ever", file: "internal/dev/vnd/ranges.go",
		from: "r.resumeUnlock(r.release(o))\n\to.end(devsw.ECANCELED)", to: "r.release(o)\n\tr.mu.Unlock()\n\to.end(devsw.ECANCELED)",
		by: tests{in: "./internal/dev/vnd", run: "TestWhoWaitsForOneThatIsCancelledGoesOn$"},
	},
})
