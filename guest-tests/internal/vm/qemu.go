// Package vm starts QEMU with a test guest and talks to both: to QEMU over its monitor, to the
// agent in the guest over the console.
package vm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

// CacheDir is where scripts/setup puts what it downloads.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "vdev"), nil
}

// QEMU is one installation of it.
type QEMU struct {
	Version string // major and minor number, such as "7.2"
	dir     string // of its programs; empty: whatever $PATH says
}

var versionRE = regexp.MustCompile(`version (\d+\.\d+)`)

// FindQEMU finds a QEMU of that version: the system's own or the one that scripts/setup unpacked.
// The version "" is for any that can run a guest, the system's first.
func FindQEMU(version string) (QEMU, error) {
	out, err := exec.Command("qemu-system-x86_64", "--version").Output()
	if m := versionRE.FindSubmatch(out); err == nil && m != nil {
		if v := string(m[1]); version == "" || v == version {
			return QEMU{Version: v}, nil
		}
	}
	if version == "" {
		version = "11.1"
	}
	cache, err := CacheDir()
	if err != nil {
		return QEMU{}, err
	}
	q := QEMU{Version: version, dir: filepath.Join(cache, "qemu-"+version, "bin")}
	if _, err := os.Stat(q.Program("qemu-system-x86_64")); err != nil {
		return QEMU{}, fmt.Errorf("no QEMU %s: %w (scripts/setup fetches it)", version, err)
	}
	return q, nil
}

// Program returns the path of one of its programs, such as qemu-img.
func (q QEMU) Program(name string) string {
	if q.dir == "" {
		return name
	}
	return filepath.Join(q.dir, name)
}

// Dir is the folder that holds its programs. It is empty for the system's.
func (q QEMU) Dir() string { return q.dir }

// LinuxDir is the folder with the guest kernel and what belongs to it.
func LinuxDir() (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "linux-trixie")
	if _, err := os.Stat(filepath.Join(dir, "vmlinuz")); err != nil {
		return "", fmt.Errorf("no guest kernel: %w (scripts/setup fetches it)", err)
	}
	return dir, nil
}

// Transport is how a virtio device shows itself on the PCI bus.
type Transport string

// The transports. Only a device behind a port of its own can be unplugged, and QEMU makes that
// modern.
const (
	Transitional Transport = "transitional" // both ways; the driver takes the one it likes
	Modern       Transport = "modern"       // virtio 1.0 only
	Legacy       Transport = "legacy"       // virtio 0.9 only
	Port         Transport = "port"         // modern, behind a PCIe root port
)

// Device is a vhost-user device: a disk, or a console.
type Device struct {
	Name      string // of the device and, with a suffix, of its chardev
	Socket    string // of the back-end
	Transport Transport
	Options   string // more of QEMU's properties, separated by commas

	// Rings is how many a console has, all of its ports' and those for control. It is 0 for a disk.
	Rings int

	// Of a disk.
	Queues    int // 0: QEMU's default
	Boot      bool
	Reconnect bool
}

// args returns QEMU's options for the device, which is the machine's number'th, from 1 on.
func (d Device) args(q QEMU, number int) ([]string, error) {
	if d.Rings > 0 && !q.AtLeast(10, 2) {
		return nil, fmt.Errorf("QEMU %s has no device for the console %s", q.Version, d.Name)
	}
	chardev := fmt.Sprintf("socket,id=%s-socket,path=%s", d.Name, d.Socket)
	if d.Reconnect {
		// The unit and the name changed with QEMU 10.2; before, the shortest time is a second.
		if q.AtLeast(10, 2) {
			chardev += ",reconnect-ms=20"
		} else {
			chardev += ",reconnect=1"
		}
	}
	device := d.Properties()
	var port []string
	switch d.Transport {
	case Transitional:
		device += ",disable-legacy=off,disable-modern=off"
	case Modern:
		device += ",disable-legacy=on,disable-modern=off"
	case Legacy:
		device += ",disable-legacy=off,disable-modern=on"
	case Port:
		port = []string{"-device", fmt.Sprintf("pcie-root-port,id=%s-port,chassis=%d", d.Name, number)}
	default:
		return nil, fmt.Errorf("unknown transport %q", d.Transport)
	}
	if d.Boot {
		device += ",bootindex=1"
	}
	return append(port, "-chardev", chardev, "-device", device), nil
}

// Properties returns the device's model, and those of its properties that do not depend on where it
// is.
func (d Device) Properties() string {
	s := fmt.Sprintf("vhost-user-blk-pci,id=%s,chardev=%s-socket", d.Name, d.Name)
	if d.Rings > 0 {
		s = fmt.Sprintf("vhost-user-test-device-pci,virtio-id=3,config_size=12,num_vqs=%d,id=%s,chardev=%s-socket", d.Rings, d.Name, d.Name)
	}
	if d.Transport == Port {
		s += ",bus=" + d.Name + "-port"
	}
	if d.Queues > 0 {
		s += fmt.Sprintf(",num-queues=%d", d.Queues)
	}
	if d.Options != "" {
		s += "," + d.Options
	}
	return s
}

// AtLeast compares the version.
func (q QEMU) AtLeast(major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(q.Version, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

// Config is a machine to start. File names are relative to Dir.
type Config struct {
	QEMU   QEMU
	Dir    string // the machine's sockets and logs
	CPUs   int    // 0: one
	Memory int    // MiB; 0: 256
	KVM    bool

	Kernel, Initrd, Append string // none: the firmware boots from the disk

	// DiskCode: the guest runs code that it has read from a disk, and may be reset.
	DiskCode bool

	Devices []Device
	Args    []string // more of QEMU's options

	// Agent is the port at which the guest's agent is spoken to. nil: the serial port.
	Agent *Console
	// RawSerial leaves the serial port to the caller, as Machine.Serial. There is no Console then.
	RawSerial bool
}

// LinuxAppend is a Linux guest's command line: quiet, and a panic restarts the machine, which is
// noticed. The clock is not watched: emulated CPUs that wait for real ones would make it look
// wrong. Pages are not cleared when they are allocated: only the disk writes to those that are read
// into, and what it does not tell of is lost in a migration. The rest saves a third of the time
// that booting takes under emulation.
const LinuxAppend = "console=ttyS0 quiet loglevel=1 panic=-1 random.trust_cpu=on tsc=reliable init_on_alloc=0 " +
	"nokaslr mitigations=off no_timer_check lpj=4000000 cryptomgr.notests"

// AgentPort is the name of the port that the agent takes commands at, beside the serial line, where
// AgentAppend is on a Linux guest's command line.
const AgentPort = "org.vdev.agent"

// AgentAppend has the agent look for its port.
const AgentAppend = " vdev.agent=" + AgentPort

func (c Config) args() ([]string, error) {
	if c.Dir == "" {
		return nil, errors.New("a machine needs a folder")
	}
	memory := strconv.Itoa(max(c.Memory, 256)) + "M"
	// QEMU 7.2 emulates cmpxchg16b wrongly: now and then it leaves rubbish in the flags, and the
	// guest's kernel, which allocates memory with it, dies of a trap that nothing asked for.
	accel, cpu := "tcg", "max,-cx16"
	if c.DiskCode && c.QEMU.AtLeast(11, 1) {
		// QEMU 11.1.3 keeps what it has translated over a reset, and does not see that a back-end
		// has written to the guest's pages: the guest that starts again runs code of before, and
		// dies. A small buffer is emptied often enough. QEMU's own disks are not concerned, and
		// neither are 7.2 and KVM.
		accel += ",tb-size=8"
	}
	if c.KVM {
		accel, cpu = "kvm", "host"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
		"-machine", "q35,memory-backend=memory", "-accel", accel, "-cpu", cpu, "-smp", strconv.Itoa(max(c.CPUs, 1)),
		"-m", memory, "-object", "memory-backend-memfd,id=memory,share=on,size=" + memory,
		"-chardev", "socket,id=console,path=" + consoleSocket + ",logfile=" + consoleLog, "-serial", "chardev:console",
		"-qmp", "unix:" + monitorSocket + ",server=on,wait=off", "-qmp", "unix:" + meterSocket + ",server=on,wait=off",
	}
	if c.QEMU.AtLeast(11, 1) {
		// Else only a device that asks for it has a migration with switchover-ack wait for the
		// target's consent.
		args = append(args, "-global", "migration.switchover-ack-legacy=on")
	}
	if c.Kernel != "" {
		args = append(args, "-kernel", c.Kernel, "-append", c.Append)
	}
	if c.Initrd != "" {
		args = append(args, "-initrd", c.Initrd)
	}
	for i, d := range c.Devices {
		more, err := d.args(c.QEMU, i+1)
		if err != nil {
			return nil, err
		}
		args = append(args, more...)
	}
	return append(args, c.Args...), nil
}

// NetBSDAppend is a NetBSD guest's command line: its root is the first disk.
const NetBSDAppend = "console=com root=ld0a"
