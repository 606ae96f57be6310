package mutants

import "time"

const suspendGo = "virtq/suspend.go"

// noShrink lets a test of rapid's end at its first failure, and leave no file about it in the tree.
const noShrink = "-rapid.nofailfile -rapid.shrinktime=1ms"

var _ = add("virtq", []mutant{
	{
		what: "suspended chains come again in the order of their suspension", file: suspendGo,
		from: "\tif q.unsorted {\n",
		to:   "\tif q.unsorted && false {\n",
		by:   tests{in: "./virtq", run: "TestSuspendedChainsComeAgainOnTheSameQueueInTheirOrder$"},
	},
	{
		what: "a chain that is popped again counts as new", file: suspendGo,
		from: "q.takeOff(c, s.head, s.seq)",
		to:   "q.takeOff(c, s.head, q.next)",
		by:   tests{in: "./virtq", run: "TestSuspendedChainsComeAgainOnTheSameQueueInTheirOrder$"},
	},
	{
		what: "the driver may use the head of a suspended chain", file: suspendGo,
		from: "\tq.hold(c.Head)\n\tif n :=",
		to:   "\tif n :=",
		by:   tests{in: "./virtq", run: "TestTheHeadOfASuspendedChainIsNotTheDrivers$"},
	},
	{
		what: "the driver may use the head of an inherited chain", file: "virtq/queue.go",
		from: "\t\tq.hold(s.head)\n",
		to:   "\t\t_ = s\n",
		by:   tests{in: "./virtq", run: "TestTheHeadOfAnInheritedChainIsNotTheDrivers$"},
	},
	{
		what: "an inherited chain goes back to the available ring", file: "virtq/inflight.go",
		from: "list[i].seq = uint64(i) //",
		to:   "list[i].seq = firstFetched + uint64(used) + uint64(i) //",
		by:   tests{in: "./virtq", run: "TestInheritedChainsAreNotUnfetched$"},
	},
	{
		what: "what was overtaken goes back to the available ring", file: suspendGo,
		from: "{ return seq+1 == q.next }",
		to:   "{ return seq >= firstFetched }",
		by:   tests{in: "./virtq", run: "TestUnfetchGivesBackWhatNothingNewerOvertook$"},
	},
	{
		what: "a chain that goes back to the available ring stays recorded", file: suspendGo,
		from: "\tif q.track != nil && q.err == nil {\n",
		to:   "\tif false {\n",
		by:   tests{in: "./virtq", run: "TestAKillBetweenAnyTwoStoresLosesAndRepeatsNothing$", args: noShrink},
	},
	{
		what: "what was written to a chain that is suspended is not marked", file: suspendGo,
		from: "\tif q.log != nil {\n\t\tq.markLanded(c)\n\t}\n",
		to:   "",
		by:   tests{in: "./virtq", run: "TestAMigratedGuestHasAllThatTheDeviceWrote$", args: noShrink},
	},
	{
		what: "the base has what is suspended behind it", file: "virtq/queue.go",
		from: "return uint16(q.next) - uint16(len(q.suspended))",
		to:   "return uint16(q.next)",
		by:   tests{in: "./virtq", run: "TestSuspendedChainsAreTakenOffTheNextIndex$"},
	},
	{
		what: "what a stop leaves suspended for nobody goes unnoticed", file: vhostQueueGo,
		from: "return q.InFlight() + q.Suspended()",
		to:   "return q.InFlight()",
		by:   tests{in: "./vhostuser", run: "TestWhatAStopLeavesSuspendedEndsTheSession$", timeout: 20 * time.Second},
	},
	{
		what: "a ring that is stopped gives out nothing that is suspended", file: vhostQueueGo,
		from: "return q.vq.Suspended() > 0 && q.pop(c)",
		to:   "return q.vq.Suspended() > 0 && q.Pop(c)",
		by:   tests{in: "./vhostuser", run: "TestAStopWithoutARegionGivesBackWhatItSuspends$", timeout: 20 * time.Second},
	},
})
