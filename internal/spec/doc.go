// Package spec reads what is to be served: a driver with its options as --driver has it, a disk as
// the flags of vdev blk, the value of --device or a table of a configuration file describe it, and
// all disks of a process with what they have in common.
//
// What comes out is a typed setting, found right by itself. Nothing is opened or looked at, and no
// other package reads these texts. An error says what is wrong and what would have been right.
package spec
