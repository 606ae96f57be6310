// Package spec reads what is to be served: a driver with its options (--driver), a port (--port), a
// disk or a console (the flags of vdev blk and of vdev console, the value of --device, or a table
// of a configuration file), and all devices of a process with what they have in common.
//
// The result is a typed setting that is correct in itself. The package opens and looks at no file.
// No other package reads these texts. An error says what is wrong and what would be right.
package spec
