package spec

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spf13/pflag"
)

// MaxSocketPath is the longest path of a Unix socket in bytes, which struct sockaddr_un has with a
// zero after it, less what listen may put before it.
const MaxSocketPath = 107 - len("./")

// Device is one device that is to be served, checked.
type Device struct {
	Name        string // what it is called where there are several; empty where there is one
	SocketPath  string // where to listen, or empty
	FD          int    // the inherited socket, where SocketPath is empty
	Migratable  bool
	AnyMemory   bool          // guest memory may be any file
	CancelAfter time.Duration // how long a stop waits for requests before it cancels them
	Disk        *Disk         // what it is; or
	Console     *Console
}

// deviceFlags are the flags that a device has whatever it is.
type deviceFlags struct {
	socketPath string
	fd         Number
	migratable Choice
	memory     Choice
}

func newDeviceFlags() deviceFlags {
	return deviceFlags{
		fd:         Number{Min: 0, Max: math.MaxInt},
		migratable: Choice{Value: "on", Of: []string{"on", "off"}},
		memory:     Choice{Value: "memory", Of: []string{"memory", "any"}},
	}
}

// registerSocket makes those that say where the front-end connects flags of fs.
func (f *deviceFlags) registerSocket(fs *pflag.FlagSet) {
	fs.StringVar(&f.socketPath, "socket-path", "", "listen on a Unix socket at `PATH`")
	fs.Var(&f.fd, "fd", "use the socket that was inherited as descriptor `N`, listening or connected")
}

// registerGuest makes those that are about the guest flags of fs. otherwise is what else
// --migratable=off does.
func (f *deviceFlags) registerGuest(fs *pflag.FlagSet, otherwise string) {
	fs.Var(&f.migratable, "migratable", "whether the guest can be saved or moved to another host"+otherwise)
	fs.Var(&f.memory, "memory-files", "what files the guest's memory may be: memory is memfds and files of tmpfs and hugetlbfs; any takes others too (QEMU's memory-backend-file on a disk), and then storage that hangs under one guest's memory makes all of vdev hang")
}

// config checks them together. given tells whether a flag was given.
func (f *deviceFlags) config(given func(flag string) bool) (Device, error) {
	c := Device{SocketPath: f.socketPath, FD: f.fd.Value, Migratable: f.migratable.Value == "on", AnyMemory: f.memory.Value == "any"}
	switch {
	case given("socket-path") && given("fd"):
		return c, errors.New("--socket-path and --fd exclude each other")
	case !given("socket-path") && !given("fd"):
		return c, errors.New("--socket-path or --fd is missing")
	case given("socket-path") && f.socketPath == "":
		return c, errors.New("--socket-path: a path is missing")
	case len(f.socketPath) > MaxSocketPath:
		return c, TooLong("socket-path", f.socketPath)
	}
	return c, nil
}

// TooLong is the error for a path of a socket that is longer than MaxSocketPath.
func TooLong(flag, path string) error {
	return fmt.Errorf("--%s %s: is %d bytes long, and a socket's path has at most %d", flag, path, len(path), MaxSocketPath)
}
