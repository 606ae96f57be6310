package mutants

const (
	offloadGo   = "internal/offload/offload.go"
	tasksGo     = "internal/tasks/tasks.go"
	operationGo = "vhostuser/virtioblk/operation.go"
	deviceGo    = "vhostuser/virtioblk/device.go"
	queueGo     = "vhostuser/virtioblk/queue.go"
)

var _ = add("threads", []mutant{
	{
		what: "one device takes all places", file: offloadGo,
		from: "|| s.running >= s.p.config.Each:",
		to:   "|| false:",
		by:   tests{in: "./internal/offload", run: "TestSharesThatStallLeaveAPlaceToEachOther$"},
	},
	{
		what: "no place is kept for an idle device", file: offloadGo,
		from: "p.busy+p.resting < p.config.Places",
		to:   "p.busy < p.config.Places",
		by:   tests{in: "./internal/offload", run: "TestSharesThatStallLeaveAPlaceToEachOther$"},
	},
	{
		what: "the pool has no bound", file: offloadGo,
		from: "\tcase p.busy >= p.config.Places:\n",
		to:   "\tcase false:\n",
		by:   tests{in: "./internal/offload", run: "TestMoreSharesThanPlacesAreServedInTurn$"},
	},
	{
		what: "a share that is closed keeps its place", file: offloadGo,
		from: "\tp.shares--\n\tp.resting--\n\tp.dispatchLocked()\n",
		to:   "",
		by:   tests{in: "./internal/offload", run: "TestTheKeptPlaceOfAShareThatIsClosedIsForAll$"},
	},
	{
		what: "the threads of places stay", file: offloadGo,
		from: "\truntime.LockOSThread()\n",
		to:   "\truntime.Gosched()\n",
		by:   tests{in: "./internal/offload", run: "TestPlacesGoWhenNothingIsLeftToDo$"},
	},
	{
		what: "places stay", file: offloadGo,
		from: "linger = 100 * time.Millisecond",
		to:   "linger = time.Hour",
		by:   tests{in: "./internal/offload", run: "TestPlacesGoWhenNothingIsLeftToDo$"},
	},
	{
		what: "a job is done without a break", file: offloadGo,
		from: "\tif more && j.hurry {",
		to:   "\tif more {",
		by:   tests{in: "./internal/offload", run: "TestJobsTakeTurns$"},
	},
	{
		what: "a job whose end is waited for takes turns", file: offloadGo,
		from: "\t\tj.hurry = true\n",
		to:   "",
		by:   tests{in: "./internal/offload", run: "TestAJobThatCannotBeTakenBackDoesNotWaitForItsTurn$"},
	},
	{
		what: "each of the joint jobs is done", file: offloadGo,
		from: "\tif j.Joint != nil && s.joint.Len() > 0 {",
		to:   "\tif false {",
		by:   tests{in: "./internal/offload", run: "TestAJointJobCoversThoseThatWait$"},
	},
	{
		what: "only the control group's own limit counts", file: tasksGo,
		from: "\t\t\t\tif p == \"/\" {\n",
		to:   "\t\t\t\tif true {\n",
		by:   tests{in: "./internal/tasks", run: "TestTheLowestLimitCounts$"},
	},
	{
		what: "what others in the control group have does not count", file: tasksGo,
		from: "take(most-others,",
		to:   "take(most-0*others,",
		by:   tests{in: "./internal/tasks", run: "TestTheLowestLimitCounts$"},
	},
	{
		what: "a thread that begins between two counts is another's", file: tasksGo,
		from: "\tfor range looks {\n",
		to:   "\tfor range 1 {\n",
		by:   tests{in: "./internal/tasks", run: "TestAThreadThatComesBetweenTwoCountsIsNotOfOthers$"},
	},
	{
		what: "the user's limit does not count", file: tasksGo,
		from: "\tif uid != 0 && nproc < Unlimited {",
		to:   "\tif false {",
		by:   tests{in: "./internal/tasks", run: "TestTheLowestLimitCounts$"},
	},
	{
		what: "the user's limit holds for root", file: tasksGo,
		from: "\tif uid != 0 && nproc < Unlimited {",
		to:   "\tif nproc < Unlimited {",
		by:   tests{in: "./internal/tasks", run: "TestTheLowestLimitCounts$"},
	},
	{
		what: "each slow request has a goroutine", file: operationGo,
		from: "\tr.q.d.share.Add(&o.job)\n",
		to:   "\tgo func() {\n\t\tfor o.piece() {\n\t\t}\n\t}()\n",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestAStopTakesBackWhatWaitsForAPlace$"},
	},
	{
		what: "a stop of the device leaves what waits for a place", file: deviceGo,
		from: "\t\t\tq.hold()\n\t\t\tq.recall()\n",
		to:   "\t\t\tq.hold()\n",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestAStopTakesBackWhatWaitsForAPlace$/of_the_device"},
	},
	{
		what: "a stop of one ring leaves what waits for a place", file: queueGo,
		from: "\tif from == 0 {\n\t\tq.recall()\n\t}\n",
		to:   "",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestAStopTakesBackWhatWaitsForAPlace$/of_one_ring"},
	},
	{
		what: "what is left of a recalled operation is done", file: operationGo,
		from: "\to.recalled.Store(true)\n",
		to:   "",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestARecalledOperationDoesNoMore$"},
	},
	{
		what: "a range is discarded in one piece", file: operationGo,
		from: "z.N = min(whole.N-o.done, most-z.Pos%most)",
		to:   "z.N = whole.N - o.done + 0*most",
		by:   tests{in: "./vhostuser/virtioblk", run: "TestLargeRangesAreDoneInPieces$"},
	},
	{
		what: "a pool has more threads than it is planned for", file: crewGo,
		from: "others := min(maxWorkers, max(stuck/2, 1))",
		to:   "others := maxWorkers",
		by:   tests{in: "./internal/reactor", run: "TestAPoolTakesNoMoreThreadsThanItIsGiven$"},
	},
	{
		what: "transfers that may block have no bound", file: crewGo,
		from: "return &crew{newWorkers(others), newWorkers(stuck), newWorkers(others)}",
		to:   "return &crew{newWorkers(others), newWorkers(1 << 20), newWorkers(others)}",
		by:   tests{in: "./internal/reactor", run: "TestAPoolTakesNoMoreThreadsThanItIsGiven$"},
	},
	{
		what: "a program ends with the thread that has asked for it",
		file: "internal/child/child.go",
		from: "\tstarted := make(chan error)\n\tgo func() {\n\t\truntime.LockOSThread()\n\t\tdefer runtime.UnlockOSThread()\n\t\terr := c.cmd.Start()\n\t\tstarted <- err\n",
		to:   "\tstarted := make(chan error, 1)\n\terr := c.cmd.Start()\n\tstarted <- err\n\tgo func() {\n\t\t_ = runtime.GOOS\n",
		by:   tests{in: "./internal/child", run: "^TestAChildOutlivesTheThreadThatAskedForIt$"},
	},
})
