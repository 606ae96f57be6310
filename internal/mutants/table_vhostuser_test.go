package mutants

import "time"

const (
	connGo       = "vhostuser/conn.go"
	closerGo     = "vhostuser/closer.go"
	sessionGo    = "vhostuser/session.go"
	backendGo    = "vhostuser/backend.go"
	ringGo       = "vhostuser/ring.go"
	stopGo       = "vhostuser/stop.go"
	policyGo     = "vhostuser/policy.go"
	vhostQueueGo = "vhostuser/queue.go"
	memoryGo     = "vhostuser/memory.go"
	inflightGo   = "vhostuser/inflight.go"
	logGo        = "vhostuser/log.go"
	statePageGo  = "vhostuser/statepage.go"
	spaceGo      = "internal/guestmem/space.go"
	mappingGo    = "internal/guestmem/mapping.go"
	guestFenceGo = "internal/guestmem/fence.go"
	fdKindGo     = "internal/sys/fdkind_linux.go"
	pollGo       = "internal/sys/poll_linux.go"
	unixSocketGo = "internal/sys/unixsocket_linux.go"
	blkGo        = "internal/spec/disk.go"
)

var _ = add("vhostuser", []mutant{

	// Descriptors are of the kind that they must be.
	{
		what: "any file is taken for an eventfd", file: connGo,
		from: "\tcase !ok:\n\t\treturn nil, &DescriptorError",
		to:   "\tcase !ok && false:\n\t\treturn nil, &DescriptorError",
		by:   tests{in: "./vhostuser", run: "TestADescriptorOfEveryKindIsTakenOrNamedInEveryPlace$"},
	},
	{
		what: "the log's eventfd may be any file", file: logGo,
		from: "\tfd, err := m.takeEventfd()\n",
		to:   "\tfd, err := m.takeFD(0), error(nil)\n",
		by:   tests{in: "./vhostuser", run: "TestADescriptorOfEveryKindIsTakenOrNamedInEveryPlace$"},
	},
	{
		what: "any socket is taken for messages of ours", file: sessionGo,
		from: "err != nil || !info.Unix || !info.Stream {",
		to:   "err != nil || info.Unix && false {",
		by:   tests{in: "./vhostuser", run: "TestADescriptorOfEveryKindIsTakenOrNamedInEveryPlace$"},
	},
	{
		what: "any file without an inode is an eventfd", file: fdKindGo,
		from: "case name == anonInode+\"[eventfd]\":",
		to:   "case strings.HasPrefix(name, anonInode):",
		by:   tests{in: "./internal/sys", run: "TestKindOfNamesWhatIsBehindADescriptor$"},
	},
	{
		what: "the kick's counter is read by a call that may wait", file: pollGo,
		from: "-1, unix.RWF_NOWAIT)",
		to:   "-1, 0)",
		by:   tests{in: "./internal/sys", run: "TestDrainEventfdDoesNotWait$", timeout: 20 * time.Second},
	},
	{
		what: "a front-end that made a reactor wait comes again at once", file: backendGo,
		from: "\tif s.blocked.Load() {\n",
		to:   "\tif false {\n",
		by:   tests{in: "./vhostuser", run: "TestADeviceWhoseFrontEndMadeAReactorWaitServesNobodyForAMoment$"},
	},
	{
		what: "each ring makes the reactor wait once", file: vhostQueueGo,
		from: "\tif q.s.blocked.Load() {\n\t\treturn\n\t}\n",
		to:   "",
		by:   tests{in: "./vhostuser", run: "TestAFrontEndMakesAReactorWaitOnce$"},
	},
	{
		what: "a signal that waited goes unnoticed", file: vhostQueueGo,
		from: "\t\tq.fail(err)\n\t\tq.s.end(&RingError{Ring: q.index, Err: err})\n\t}\n}",
		to:   "\t}\n}",
		by:   tests{in: "./vhostuser", run: "TestAnEventfdThatWaitsEndsItsConnectionAndNothingElse$/^call$/^io_uring$", timeout: 20 * time.Second},
	},

	// A front-end's share of address space and mappings.
	{
		what: "a front-end shares any number of bytes", file: spaceGo,
		from: "if c.have.bytes > c.limit.bytes {",
		to:   "if false {",
		by:   tests{in: "./internal/guestmem", run: "TestASpaceTakesNoMoreThanItMay$"},
	},
	{
		what: "a front-end has any number of mappings", file: spaceGo,
		from: "if c.have.count > c.limit.count {",
		to:   "if false {",
		by:   tests{in: "./internal/guestmem", run: "TestASpaceTakesNoMoreThanItMay$"},
	},
	{
		what: "all front-ends together have no bound", file: spaceGo,
		from: "}{{\"this device's front-end\", one, l.one}, {\"all front-ends together\", all, l.all}} {",
		to:   "}{{\"this device's front-end\", one, l.one}} {",
		by:   tests{in: "./internal/guestmem", run: "TestASpaceTakesNoMoreThanItMay$"},
	},
	{
		what: "what is unmapped goes on counting", file: mappingGo,
		from: "\ts.giveLocked(held{uint64(len(mapping)), 1})\n",
		to:   "",
		by:   tests{in: "./internal/guestmem", run: "TestASpaceTakesNoMoreThanItMay$"},
	},
	{
		what: "what could not be mapped counts", file: mappingGo,
		from: "\tif err != nil {\n\t\ts.giveLocked(h)\n",
		to:   "\tif err != nil {\n",
		by:   tests{in: "./internal/guestmem", run: "TestARefusedMappingDoesNotCount$"},
	},
	{
		what: "a fence has no room beyond the bound", file: guestFenceGo,
		from: "hostLimits().again()",
		to:   "hostLimits()",
		by:   tests{in: "./internal/guestmem", run: "TestWhatIsMappedAgainHasRoomBeyondTheBound$"},
	},
	{
		what: "one goroutine unmaps the memory of all", file: "internal/guestmem/region.go",
		from: "r.space.later.put(r)", to: "all.put(r)",
		and: []edit{{"internal/guestmem/later.go", "// put has r freed soon.\n", "var all later\n\n// put has r freed soon.\n"}},
		by:  tests{in: "./internal/guestmem", run: "TestNoSpaceWaitsForAnothersMemory$"},
	},
	{
		what: "regions do not count for their device", file: memoryGo,
		from: "\treturn s.b.space.Map(",
		to:   "\treturn new(guestmem.Space).Map(",
		by:   tests{in: "./vhostuser", run: "TestAFrontEndFillsNoAddressSpace$"},
	},
	{
		what: "in-flight regions do not count", file: inflightGo,
		from: "region, err := s.b.space.Map(",
		to:   "region, err := new(guestmem.Space).Map(",
		by:   tests{in: "./vhostuser", run: "TestAnyFileIsMemoryWhereThatWasAskedFor$"},
	},
	{
		what: "logs do not count", file: logGo,
		from: "log, err := s.b.space.NewLog(",
		to:   "var none guestmem.Space\n\tlog, err := none.NewLog(",
		and: []edit{
			{logGo, "import (\n", "import (\n\t\"vdev/internal/guestmem\"\n"},
		},
		by: tests{in: "./vhostuser", run: "TestAFrontEndFillsNoAddressSpace$"},
	},

	// Memory of a server that does not answer.
	{
		what: "any file is memory", file: mappingGo,
		from: "\tif s.AnyFiles {\n",
		to:   "\tif true {\n",
		by:   tests{in: "./vhostuser", run: "TestADescriptorOfEveryKindIsTakenOrNamedInEveryPlace$"},
	},
	{
		what: "memory that is refused is closed on the connection", file: memoryGo,
		from: "\tif err := s.b.space.Admits(m.fds[i]); err != nil {\n\t\treturn nil, err\n\t}\n",
		to:   "",
		by:   tests{in: "./vhostuser", run: "TestMemoryOfAServerThatDoesNotAnswerHoldsUpNobody$"},
	},
	{
		what: "descriptors are closed on the connection", file: connGo,
		from: "\t\t\tm.closer.close(f)\n",
		to:   "\t\t\tf.Close()\n",
		by:   tests{in: "./vhostuser", run: "TestMemoryOfAServerThatDoesNotAnswerHoldsUpNobody$"},
	},
	{
		what: "any number of descriptors wait to be closed", file: closerGo,
		from: "for len(c.queue) >= maxClosing {",
		to:   "for false {",
		by:   tests{in: "./vhostuser", run: "TestManyClosesThatHangKeepFrontEndsAway$"},
	},

	// Other front-ends.
	{
		what: "a read beyond the configuration space is refused", file: sessionGo,
		from: "\tc, err := ParseConfigSpace(m.payload)\n\tif err != nil {\n\t\treturn nil, err\n\t}\n\ts.dev.ReadConfig",
		to:   "\tc, err := s.parseConfig(m)\n\tif err != nil {\n\t\treturn nil, err\n\t}\n\ts.dev.ReadConfig",
		by:   tests{in: "./vhostuser", run: "TestNoReadOfTheConfigSpaceIsRefused$"},
	},
	{
		what: "what is behind the configuration space is not zero", file: sessionGo,
		from: "\tc.Data = make([]byte, len(c.Data))\n\tif c.Offset",
		to:   "\tif c.Offset",
		by:   tests{in: "./vhostuser", run: "TestNoReadOfTheConfigSpaceIsRefused$"},
	},
	{
		what: "a write with the flag of a migration is refused", file: sessionGo,
		from: "c.Flags != ConfigWritable && c.Flags != ConfigMigration {",
		to:   "c.Flags != ConfigWritable {",
		by:   tests{in: "./vhostuser", run: "TestConfigSpaceIsReadAndWritten$"},
	},
	{
		what: "64 queues are offered", file: blkGo,
		from: "maxQueues = 256",
		to:   "maxQueues = 64",
		by:   tests{in: "./cmd/vdev", run: "TestAsManyQueuesAreOfferedAsThereCanBe$"},
	},

	// Declined protocol features.
	{
		what: "what is declined is offered", file: sessionGo,
		from: "\tp &^= s.b.decline\n",
		to:   "",
		by:   tests{in: "./vhostuser", run: "TestWhatIsDeclinedCannotBeNegotiated$"},
	},
	{
		what: "what needs a declined feature is offered", file: sessionGo,
		from: "\tif p&ProtocolInflightSHMFD == 0 {\n",
		to:   "\tif false {\n",
		by:   tests{in: "./vhostuser", run: "TestWhatIsDeclinedCannotBeNegotiated$"},
	},

	// A disable waits for what is in flight.
	{
		what: "a disable is answered before what has just ended is shown", file: ringGo,
		from: "\t\t\tpoller{q}.Flush()\n\t\t}\n\t})\n\ts.b.event(Event{Kind: EventDisable",
		to:   "\t\t}\n\t})\n\ts.b.event(Event{Kind: EventDisable",
		by:   tests{in: "./vhostuser", run: "TestWhatHasJustEndedIsShownBeforeADisableIsAnswered$"},
	},
	{
		what: "a disable waits for nothing", file: ringGo,
		from: "\t\tif s.disable(r) > 0 {\n\t\t\ts.drain(r)\n\t\t}\n",
		to:   "\t\ts.disable(r)\n",
		by:   tests{in: "./vhostuser", run: "TestADisableIsAnsweredWhenNothingIsInFlight$"},
	},
	{
		what: "a hang-up does not end the wait of a disable", file: stopGo,
		from: "\ts.whileWaited(func() { s.dev.PauseQueue(q, how) })\n",
		to:   "\ts.dev.PauseQueue(q, how)\n",
		by:   tests{in: "./vhostuser", run: "TestAHangUpEndsTheWaitOfADisable$", timeout: 20 * time.Second},
	},
	{
		what: "a hang-up is not seen behind messages", file: sessionGo,
		from: "err == nil && n == 0 || sys.Closed(int(fd))",
		to:   "err == nil && n == 0",
		and: []edit{
			{sessionGo, "\t\t\treturn hung || err != nil && !errors.Is", "\t\t\treturn err == nil || !errors.Is"},
		},
		by: tests{in: "./vhostuser", run: "TestAHangUpEndsTheWaitOfADisable$", timeout: 20 * time.Second},
	},
	{
		what: "a disable holds up a stop that cancels", file: stopGo,
		from: "\tif !s.decide(StopDisable, q).wait {\n\t\treturn\n\t}\n",
		to:   "",
		by:   tests{in: "./vhostuser", run: "TestAStopThatCancelsIsNotHeldUpByADisable$"},
	},
	{
		what: "RESET_OWNER waits for one ring after the other", file: sessionGo,
		from: "\t\t\tbusy = append(busy, r)\n",
		to:   "\t\t\ts.drain(r)\n",
		by:   tests{in: "./vhostuser", run: "TestResetOwnerWaitsForEveryRing$"},
	},
	{
		what: "a disabled ring's driver is told that no kicks are needed", file: vhostQueueGo,
		from: "func (q poller) Disarm() {\n\tif q.paused || q.broken != nil {",
		to:   "func (q poller) Disarm() {\n\tif q.broken != nil {",
		by:   tests{in: "./vhostuser", run: "TestADisabledRingIsLeftAlone$"},
	},
	{
		what: "a disk does not wait when it is disabled", file: deviceGo,
		from: "\tbusy := d.hold([]*queue{q})\n\tif len(busy) == 0 {",
		to:   "\tbusy := d.hold([]*queue{q})\n\tif true {",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestCloudHypervisorPausesAndResets$|TestLibkrunResets$"},
	},
	{
		what: "a disk cancels when it is disabled", file: deviceGo,
		from: "\td.beginStop(how)\n\terr := ",
		to:   "\thow.Deadline = time.Now()\n\td.beginStop(how)\n\terr := ",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestCloudHypervisorPausesAndResets$"},
	},
	{
		what: "each ring that is disabled has a deadline of its own", file: stopGo,
		from: "\tif t.deadline.IsZero() {\n",
		to:   "\tif true {\n",
		by:   tests{in: "./vhostuser", run: "TestAStopOfSeveralMessagesHasOneDeadline$"},
	},
	{
		what: "a ring that is enabled has the deadline of an older stop", file: ringGo,
		from: "\tq.state, s.stopping = RingRunning, stopTime{}\n",
		to:   "\tq.state = RingRunning\n",
		by:   tests{in: "./vhostuser", run: "TestAStopOfSeveralMessagesHasOneDeadline$"},
	},
	{
		what: "a ring that is stopped much later has the deadline of an older stop", file: stopGo,
		from: "\tif !t.answered.IsZero() && now.Sub(t.answered) >= gap {\n",
		to:   "\tif false {\n",
		by:   tests{in: "./vhostuser", run: "TestAStopOfSeveralMessagesHasOneDeadline$"},
	},
	{
		what: "a ring with nothing in flight sets the deadline", file: stopGo,
		from: "\t\tif q.inFlight > 0 {\n",
		to:   "\t\tif q.inFlight >= 0 {\n",
		by:   tests{in: "./vhostuser", run: "TestAStopOfSeveralMessagesHasOneDeadline$"},
	},

	// The stop of a device is one.
	{
		what: "a device is stopped ring by ring", file: ringGo,
		from: "\tcase s.fetching(r):\n",
		to:   "\tcase true:\n",
		by:   tests{in: "./vhostuser", run: "TestADeviceIsStoppedOnce$"},
	},
	{
		what: "a device is stopped while a ring is fetched from", file: ringGo,
		from: "\tcase s.fetching(r):\n",
		to:   "\tcase false:\n",
		by:   tests{in: "./vhostuser", run: "TestARingIsStoppedAloneWhileOthersAreEnabled$"},
	},
	{
		what: "a device is stopped while its last ring is fetched from", file: stopGo,
		from: "\t\tr.q.detach()\n",
		to:   "\t\tif i == 0 {\n\t\t\tr.q.detach()\n\t\t}\n",
		by:   tests{in: "./vhostuser", run: "TestNoRingIsFetchedFromWhileADeviceStops$"},
	},
	{
		what: "a front-end that hangs up in a wait changes nothing", file: policyGo,
		from: "(travels || !migratable || hungUp)",
		to:   "(travels || !migratable)",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestWhatAStopDoesWithRequestsThatHang$/^disconnect_in_a_stop,_the_region_stays$"},
	},
	{
		what: "the region travels, and requests are waited for", file: policyGo,
		from: "wait:    !travels && !hungUp,",
		to:   "wait:    !hungUp,",
		by:   tests{in: "./vhostuser", run: "TestThePolicyOfAStop$"},
	},
	{
		what: "what is suspended stays after a disable", file: ringGo,
		from: "if left = q.inFlight + q.Suspended(); left == 0 {",
		to:   "if left = q.inFlight; left == 0 {",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestADisableFencesWhatStorageDoesNotGiveBack$", timeout: 30 * time.Second},
	},
	{
		what: "requests that hang stay after a disable", file: deviceGo,
		from: "\t\td.awaitCancelled(busy)\n\t\t// What would be",
		to:   "\t\t// What would be",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestADisableFencesWhatStorageDoesNotGiveBack$", timeout: 30 * time.Second},
	},
	{
		what: "what a disable has cancelled is not answered", file: deviceGo,
		from: "\t\t\tq.settle(false)\n\t\t\tif err != nil {",
		to:   "\t\t\tif err != nil {",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestWhatADisableDoesWithRequestsThatHang$"},
	},
	{
		what: "a ring that is enabled again is not served", file: deviceGo,
		from: "\tvq.Do(vq.Data.(*queue).resume)\n",
		to:   "\t_ = vq\n",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestCloudHypervisorPausesAndResets$", timeout: 40 * time.Second},
	},

	// Sockets of a newer process.
	{
		what: "a socket that is another's is removed", file: unixSocketGo,
		from: "err == nil && !os.SameFile(now, info) {",
		to:   "err == nil && !os.SameFile(now, now) {",
		by:   tests{in: "./internal/sys", run: "TestAClosedListenerRemovesOnlyItsOwnSocket$"},
	},
	{
		what: "package net removes the socket", file: unixSocketGo,
		from: "u.UnixListener.SetUnlinkOnClose(false)",
		to:   "u.UnixListener.SetUnlinkOnClose(true)",
		by:   tests{in: "./internal/sys", run: "TestAClosedListenerRemovesOnlyItsOwnSocket$"},
	},

	// The state page, and where a guest driver comes from.
	{
		what: "the state is not stored", file: statePageGo,
		from: "\t\tguestmem.Store64(header[offStateWord:], stateWord(state))\n",
		to:   "",
		by:   tests{in: "./vhostuser", run: "TestWhatIsStoredInTheStatePageIsFoundByTheNextOne$"},
	},
	{
		what: "a page of somebody else is taken for a state", file: statePageGo,
		from: "if err != nil || string(header[offStateMark:][:len(statePageMark)]) != statePageMark {",
		to:   "if err != nil {",
		by:   tests{in: "./vhostuser", run: "TestWhatIsStoredInTheStatePageIsFoundByTheNextOne$"},
	},
	{
		what: "half a state is taken for one", file: statePageGo,
		from: "word == stateWord(uint32(word))",
		to:   "true",
		by:   tests{in: "./vhostuser", run: "TestWhatIsStoredInTheStatePageIsFoundByTheNextOne$"},
	},
	{
		what: "memory behind a region is taken for a state", file: statePageGo,
		from: "\tif d.MmapSize < d.statePage()+statePageSize {",
		to:   "\tif false {",
		by:   tests{in: "./vhostuser", run: "TestWhatIsStoredInTheStatePageIsFoundByTheNextOne$"},
	},
	{
		what: "the device keeps the page of a region that is dropped", file: inflightGo,
		from: "\tif k := s.b.keeper; k != nil {\n\t\tk.SetStatePage(nil)\n\t}\n",
		to:   "",
		by:   tests{in: "./vhostuser", run: "TestWhatIsStoredInTheStatePageIsFoundByTheNextOne$"},
	},
	{
		what: "a region has no room for the state", file: inflightGo,
		from: "\t\td.MmapSize = d.statePage() + statePageSize\n",
		to:   "\t\td.MmapSize = d.statePage()\n",
		by:   tests{in: "./vhostuser", run: "TestWhatIsStoredInTheStatePageIsFoundByTheNextOne$"},
	},
	{
		what: "a guest that was set back is taken for the same", file: ringGo,
		from: "\t\t\tgoesOn = goesOn && r.base == r.left\n",
		to:   "",
		by:   tests{in: "./vhostuser", run: "TestTheOriginOfADriverShowsInTheBases$"},
	},
	{
		what: "a guest that begins anew is taken for the same", file: ringGo,
		from: "\t\t\tbegins = begins && r.base == 0\n",
		to:   "\t\t\tbegins = false\n",
		by:   tests{in: "./vhostuser", run: "TestTheOriginOfADriverShowsInTheBases$"},
	},
	{
		what: "a reset is forgotten", file: sessionGo,
		from: "\t\tr.base, r.left, r.broken = 0, 0, nil\n\t}\n\ts.driver = driverUnseen\n",
		to:   "\t\tr.base, r.left, r.broken = 0, 0, nil\n\t}\n",
		by:   tests{in: "./vhostuser", run: "TestTheOriginOfADriverShowsInTheBases$"},
	},
	{
		what: "a driver with requests in the region begins", file: ringGo,
		from: "begins, goesOn, ran := !q.vq.Inherited(), true, false",
		to:   "begins, goesOn, ran := true, true, false",
		by:   tests{in: "./vhostuser", run: "TestTheOriginOfADriverShowsInTheRegion$"},
	},
	{
		what: "another ring that comes from elsewhere is passed over", file: ringGo,
		from: "\t\tif r.base != 0 && r.base != r.left {\n\t\t\ts.driver = DriverElsewhere\n\t\t}\n",
		to:   "",
		by:   tests{in: "./vhostuser", run: "TestTheOriginOfADriverShowsInTheBases$"},
	},
})
