package mutants

var _ = add("virtioblk", []mutant{
	{
		what: "the mode in the page is not read",
		file: "internal/virtioblk/state.go",
		from: "\tif driver != cacheUnknown {\n\t\tm.driver, m.fromPage",
		to:   "\tif false {\n\t\tm.driver, m.fromPage",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestWritesAreStableUnlessTheGuestIsKnownToFlush$",
		},
	},
	{
		what: "the guest's choice is not kept in the page",
		file: "internal/virtioblk/state.go",
		from: "\tm.told, m.driver = mode, mode\n\tm.storeLocked()\n",
		to:   "\tm.told, m.driver = mode, mode\n",
		by:   tests{in: "./internal/virtioblk", run: "^TestTheGuestsChoiceIsKnownAfterAKill$"},
	},
	{
		what: "an unknown mode is writeback",
		file: "internal/virtioblk/state.go",
		from: "m.driver == cacheWritethrough || m.driver == cacheUnknown && d.negotiated&fConfigWCE != 0",
		to:   "m.driver == cacheWritethrough",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestWritesAreStableUnlessTheGuestIsKnownToFlush$",
		},
	},
	{
		what: "a driver that began elsewhere takes the front-end's copy",
		file: "internal/virtioblk/state.go",
		from: "\tcase origin == vhostuser.DriverElsewhere && (first || m.origin != origin):\n\t\tm.driver = cacheUnknown\n",
		to:   "\tcase origin == vhostuser.DriverElsewhere && (first || m.origin != origin):\n\t\tm.driver = m.told\n",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestWritesAreStableUnlessTheGuestIsKnownToFlush$",
		},
	},
	{
		what: "a read of the configuration counts whenever it comes",
		file: "internal/virtioblk/state.go",
		from: "!m.ran && m.told == cacheUnknown",
		to:   "m.driver == cacheUnknown",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestWritesAreStableUnlessTheGuestIsKnownToFlush$",
		},
	},
	{
		what: "a session begins with what the one before knew",
		file: "internal/virtioblk/state.go",
		from: "\tm.told, m.driver, m.fromPage, m.ran = cacheUnknown, cacheUnknown, false, false\n",
		to:   "\tm.ran = false\n",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestWritesAreStableUnlessTheGuestIsKnownToFlush$",
		},
	},
	{
		what: "writes are not stable though the mode says so",
		file: "internal/virtioblk/request.go",
		from: "if r.q.stable || r.q.d.stable.Load() {",
		to:   "if r.q.stable {",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestWritesAreStableUnlessTheGuestIsKnownToFlush$",
		},
	},
	{
		what: "a session begins with the size known",
		file: "internal/virtioblk/device.go",
		from: "\t\td.lookAgain()\n\t}()\n",
		to:   "\t}()\n",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestASessionBeginsWithTheSizeThatStorageHasNow$",
		},
	},
	{
		what: "an open does not look at the size",
		file: "internal/virtioblk/device.go",
		from: "\t\td.takeOver()\n\t\td.lookAgain()\n",
		to:   "\t\td.takeOver()\n",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestASessionBeginsWithTheSizeThatStorageHasNow$",
		},
	},
	{
		what: "the front-end is not told of another size",
		file: "internal/virtioblk/device.go",
		from: "\tif changed {\n\t\t// Also",
		to:   "\tif false && changed {\n\t\t// Also",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestASessionBeginsWithTheSizeThatStorageHasNow$",
		},
	},
	{
		what: "each session has a look of its own in progress",
		file: "internal/virtioblk/device.go",
		from: "\tif !d.looking.CompareAndSwap(false, true) {\n\t\treturn\n\t}\n",
		to:   "",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestASessionBeginsWithTheSizeThatStorageHasNow$",
		},
	},
	{
		what: "what the page says of the disk is not handed to the driver",
		file: "internal/virtioblk/state.go",
		from: "\tif brought != (devsw.DiskState{}) {\n\t\td.keeper.SetState(brought)\n\t}\n",
		to:   "\t_ = brought\n",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestAFailedFlushIsHandedOn$|^TestUnflushedWritesAreHandedOn$",
		},
	},
	{
		what: "a failed operation is not put into the page before the answer",
		file: "internal/virtioblk/request.go",
		from: "\tif err != nil && !cancelled(err) {\n\t\to.d.learn()\n\t}\n\to.tell",
		to:   "\to.tell",
		by:   tests{in: "./internal/virtioblk", run: "^TestAFailedFlushIsHandedOn$"},
	},
	{
		what: "a failed write is not put into the page before the answer",
		file: "internal/virtioblk/request.go",
		from: "\t\tr.q.d.learn()\n\t}\n\tr.end(err)",
		to:   "\t}\n\tr.end(err)",
		by:   tests{in: "./internal/virtioblk", run: "^TestAFailedFlushIsHandedOn$"},
	},
	{
		what: "the page has no room for the failure",
		file: "internal/virtioblk/state.go",
		from: "\t\tstate |= uint32(min(e, maxErrno)) << stateErrno\n",
		to:   "\t\t_ = state\n",
		by:   tests{in: "./internal/virtioblk", run: "^TestAFailedFlushIsHandedOn$"},
	},
	{
		what: "a page that says anything is believed",
		file: "internal/virtioblk/state.go",
		from: "\tdisk.FlushError = devsw.Errno(min(state>>stateErrno, maxErrno))",
		to:   "\tdisk.FlushError = devsw.Errno(state>>stateErrno)",
		by:   tests{in: "./internal/virtioblk", run: "^TestAStatePageMayHoldAnything$"},
	},
	{
		what: "requests are begun whatever memory they take",
		file: "internal/virtioblk/queue.go",
		from: "\t\tif q.held >= q.granted && !q.moreRoom() {\n\t\t\treturn worked\n\t\t}\n",
		to:   "",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestRequestsInFlightTakeBoundedMemory$/^of_the_device$",
		},
	},
	{
		what: "a device has no bound of its own",
		file: "internal/virtioblk/room.go",
		from: "\tif r.used.Add(roomChunk) <= r.room.device {",
		to:   "\tif r.used.Add(roomChunk) > 0 {",
		by: tests{
			in:  "./internal/virtioblk",
			run: "^TestRequestsInFlightTakeBoundedMemory$/^of_the_device$",
		},
	},
})
