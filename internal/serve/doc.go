// Package serve builds served devices: what a guest gets, from the driver below to the socket
// above, and what one sees and changes of it while it runs.
//
// A Set has all devices of a process. They share its event loops, its threads for what may block,
// and its control socket, and nothing else: one that hangs, or fails once it is served, is no
// business of the others. A Device is one of them, from the moment it is described to its end. What
// it is, its Kind says: a disk, for one, which is package blk. This package knows of no kind.
//
//	Kind.Open      makes drivers, device switch numbers and the device model: a Model
//	Device         gives that a device switch, a specfs, a vhostuser.Backend and a socket
//	Set            opens devices, tries again those that could not be opened, serves, and ends all
//	control.Target is a Device; what its kind alone can be asked for, its Model answers
//
// A Device is being opened, or waits to be tried again, until it is served; then it is served until
// its end. Its record of events (Life) begins with it and goes on throughout.
//
// No goroutine waits for a Device but its own (Device.serve), so that whatever storage does,
// another one is served. Status and the record never wait for storage. What may wait for it, on
// behalf of whoever uses the control socket, is counted: see Commands.
package serve
