package spec

import (
	"bytes"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"

	"vdev/devsw"
)

// text writes a driver as ParseDriver reads it.
func (d Driver) text() string {
	var fields []string
	add := func(format string, args ...any) { fields = append(fields, fmt.Sprintf(format, args...)) }
	if f := d.Faults; f != nil {
		add("fault")
		for _, r := range f.Rules {
			add("rule=%v", r)
		}
		if f.Cache != 0 {
			add("cache=%d", f.Cache)
		}
		if f.NoCancel {
			add("no-cancel")
		}
		add("lower=%s", d.Name)
	} else {
		add("%s", d.Name)
	}
	for key, value := range map[string]string{
		"file": d.File, "uri": d.NBD.URI, "format": d.QEMU.Format, "detect-zeroes": d.QEMU.DetectZeroes, "program": d.QEMU.Program,
		"backing-chain": string(d.QEMU.Chain),
	} {
		if value != "" {
			add("%s=%s", key, value)
		}
	}
	for key, n := range map[string]int64{"size": d.Size, "connections": int64(d.NBD.Connections)} {
		if n != 0 {
			add("%s=%d", key, n)
		}
	}
	if d.NBD.Delay != 0 {
		add("reconnect-delay=%v", d.NBD.Delay)
	}
	if d.NBD.Unflushed != 0 {
		add("unflushed=%s", unflushedNames[d.NBD.Unflushed])
	}
	for key, on := range map[string]bool{
		"read-only": d.ReadOnly, "direct": d.Direct, "bounce": d.Bounce && d.Name == "vnd", "no-discard": d.NoDiscard, "snapshot": d.QEMU.Snapshot,
	} {
		if on {
			add("%s", key)
		}
	}
	for i, f := range fields {
		fields[i] = strings.ReplaceAll(f, ",", ",,")
	}
	return strings.Join(fields, ",")
}

// blockSize is the value of --logical-block-size.
func blockSize(c Disk) string {
	if c.BlockSize == 0 {
		return "auto"
	}
	return strconv.Itoa(int(c.BlockSize))
}

// text writes a port as ParsePort reads it.
func (p Port) text() string {
	onOff := map[bool]string{true: "on", false: "off"}
	driver := "driver="
	if p.Faulty {
		driver = "driver=fault,lower="
	}
	fields := []string{driver + p.Driver, "console=" + onOff[p.Console], "overflow=" + map[bool]string{true: "wait", false: "drop"}[p.Wait]}
	add := func(given bool, format string, args ...any) {
		if given {
			fields = append(fields, strings.ReplaceAll(fmt.Sprintf(format, args...), ",", ",,"))
		}
	}
	rotation := func(prefix string, r Rotation) {
		add(r.Timestamps, "%stimestamps", prefix)
		add(r.MaxSize != 0, "%smax-size=%d", prefix, r.MaxSize)
		add(r.MaxFiles != 0, "%smax-files=%d", prefix, r.MaxFiles)
	}
	for _, r := range p.Faults {
		add(true, "rule=%v", r)
	}
	add(p.ID != AnyID, "id=%d", p.ID)
	add(p.Name != "", "name=%s", p.Name)
	if p.Driver == "file" {
		add(true, "file=%s", p.Path)
	} else {
		add(p.Path != "", "path=%s", p.Path)
	}
	add(p.Address != "", "address=%s", p.Address)
	add(p.Connect, "connect=on")
	add(p.Watchers >= 0, "watchers=%d", p.Watchers)
	rotation("", p.File)
	if p.Log != nil {
		add(true, "log=%s", p.Log.Path)
		rotation("log-", p.Log.Rotation)
	}
	add(p.Scrollback != 0, "scrollback=%d", p.Scrollback)
	add(p.Size != devsw.Winsize{}, "size=%dx%d", p.Size.Col, p.Size.Row)
	return strings.Join(fields, ",")
}

// table writes a device as a table of a configuration file.
func (c Device) table() map[string]any {
	t := map[string]any{"name": c.Name, "migratable": map[bool]string{true: "on", false: "off"}[c.Migratable]}
	if c.SocketPath != "" {
		t["socket-path"] = c.SocketPath
	} else {
		t["fd"] = c.FD
	}
	if c.Console != nil {
		c.Console.addTo(t)
		return t
	}
	for key, value := range map[string]any{
		"num-queues": c.Disk.NumQueues, "seg-max": c.Disk.SegMax, "serial": c.Disk.Serial, "logical-block-size": blockSize(*c.Disk),
		"incoming": c.Disk.Incoming, "cancel-after": c.CancelAfter.String(), "bounce": c.Disk.Driver.Bounce,
	} {
		t[key] = value
	}
	d := c.Disk.Driver
	if !d.Detect {
		t["driver"] = d.text()
		return t
	}
	t["blk-file"], t["snapshot"], t["read-only"], t["direct"], t["no-discard"] = d.File, d.QEMU.Snapshot, d.ReadOnly, d.Direct, d.NoDiscard
	if d.QEMU.Format != "" {
		t["format"] = d.QEMU.Format
	}
	if d.QEMU.Chain != "" {
		t["backing-chain"] = string(d.QEMU.Chain)
	}
	return t
}

// addTo writes a console into the table of its device.
func (c *Console) addTo(t map[string]any) {
	t["type"] = "console"
	t["multiport"], t["resize-order"] = map[bool]string{true: "on", false: "off"}[c.Multiport], resizeOrders[0]
	if c.RowsFirst {
		t["resize-order"] = resizeOrders[1]
	}
	if c.Multiport {
		t["max-ports"] = c.MaxPorts
	}
	ports := []string{}
	for _, p := range c.Ports {
		ports = append(ports, p.text())
	}
	t["port"] = ports
}

// text writes a device as --device has it.
func (c Device) text() string {
	var fields []string
	add := func(key string, value any) {
		fields = append(fields, strings.ReplaceAll(fmt.Sprintf("%s=%v", key, value), ",", ",,"))
	}
	for key, value := range c.table() {
		if list, ok := value.([]string); ok {
			for _, one := range list {
				add(key, one)
			}
		} else {
			add(key, value)
		}
	}
	return strings.Join(fields, ",")
}

// checkDriver fails if a driver was taken that cannot be.
func checkDriver(t *testing.T, d Driver) {
	t.Helper()
	switch {
	case driverOptions[d.Name] == nil:
		t.Errorf("driver %q does not exist", d.Name)
	case d.Size < 0 || d.Size%512 != 0:
		t.Errorf("size %d", d.Size)
	case d.Size == 0 && d.File == "" && d.NBD.URI == "":
		t.Errorf("driver %s has neither a size nor a file nor a URI", d.Name)
	case d.NBD.Delay < 0, d.Faults != nil && d.Faults.Cache < 0:
		t.Errorf("%+v, %+v", d, d.Faults)
	}
}

// checkPort fails if a port was taken that cannot be.
func checkPort(t *testing.T, p Port) {
	t.Helper()
	switch {
	case portDrivers[p.Driver] == nil:
		t.Errorf("driver %q does not exist", p.Driver)
	case p.Console && p.Wait, p.ID < AnyID || p.ID >= maxPorts, p.Name != "" && !portName.MatchString(p.Name), p.Size.Col == 0 != (p.Size.Row == 0),
		p.Scrollback < 0 || p.Scrollback > maxScrollback, p.Log != nil && p.Log.Path == "":
		t.Errorf("%+v", p)
	}
}

// FuzzPort reads a port, which is the same when it was written and read again.
func FuzzPort(f *testing.F) {
	for s := range goodPorts {
		f.Add(s)
	}
	for s := range badPorts {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePort(s)
		if err != nil {
			checkRefusal(t, err, s)
			return
		}
		checkPort(t, p)
		if again, err := ParsePort(p.text()); err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("written as %q, it is read as %+v, %v; want %+v", p.text(), again, err, p)
		}
	})
}

// checkConsole fails if a console was taken that cannot be.
func checkConsole(t *testing.T, c *Console) {
	t.Helper()
	ids, names := map[int]bool{}, map[string]bool{}
	for _, p := range c.Ports {
		checkPort(t, p)
		if ids[p.ID] || names[p.Name] || p.ID < 0 || p.ID >= c.MaxPorts {
			t.Errorf("the ports %+v", c.Ports)
		}
		ids[p.ID], names[p.Name] = true, p.Name != ""
	}
	if q := c.Queues(); q < 2 || q > 64 || !c.Multiport && len(c.Ports) != 1 {
		t.Errorf("%d queues, %+v", q, c)
	}
}

// checkRefusal fails unless err says something of about the text that is wrong.
func checkRefusal(t *testing.T, err error, text string) {
	t.Helper()
	if n := len(err.Error()); n == 0 || n > 6*len(text)+500 {
		t.Errorf("an error of %d bytes about a text of %d: %.500v", n, len(text), err)
	}
}

func FuzzDriver(f *testing.F) {
	for s := range goodDrivers {
		f.Add(s)
	}
	for s := range badDrivers {
		f.Add(s)
	}
	for _, s := range []string{"fault,rule=hang:write:blocks=0-7,cache=1M,no-cancel,lower=md,size=1G", "fault,lower=vnd,file=a,,b", "fault,rule=crash:any,lower=md,size=1G"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDriver(s)
		if err != nil {
			checkRefusal(t, err, s)
			return
		}
		checkDriver(t, d)
		if again, err := ParseDriver(d.text()); err != nil || !reflect.DeepEqual(again, d) {
			t.Errorf("written as %q, it is read as %+v, %v; want %+v", d.text(), again, err, d)
		}
	})
}

// checkDisk fails if a disk was taken that cannot be.
func checkDisk(t *testing.T, d Device) {
	t.Helper()
	checkDriver(t, d.Disk.Driver)
	switch {
	case len(d.Disk.Serial) > serialMax, d.Disk.NumQueues < 1, d.Disk.BlockSize != 0 && d.Disk.BlockSize != 512 && d.Disk.BlockSize != 4096,
		d.CancelAfter < 0, d.Disk.Driver.Size%max(int64(d.Disk.BlockSize), 512) != 0:
		t.Errorf("%+v", d)
	}
}

// checkDevices fails if devices were taken that cannot be, or that are not the same when they were
// written and read again.
func checkDevices(t *testing.T, devices []Device) {
	t.Helper()
	tables := map[string]any{"device": []map[string]any{}}
	for _, d := range devices {
		if !deviceName.MatchString(d.Name) || d.SocketPath == "" && d.FD < 0 || len(d.SocketPath) > MaxSocketPath || (d.Disk == nil) == (d.Console == nil) {
			t.Errorf("%+v", d)
		}
		if d.Console != nil {
			checkConsole(t, d.Console)
		} else {
			checkDisk(t, d)
		}
		if again, err := parseDevice(d.text()); err != nil || !reflect.DeepEqual(again, d) {
			t.Errorf("written as %q, a device is read as %+v, %v; want %+v", d.text(), again, err, d)
		}
		tables["device"] = append(tables["device"].([]map[string]any), d.table())
	}
	if len(devices) == 0 {
		return
	}
	var text bytes.Buffer
	if err := toml.NewEncoder(&text).Encode(tables); err != nil {
		t.Fatal(err)
	}
	if !utf8.Valid(text.Bytes()) {
		return // a path that cannot stand in a file
	}
	again, err := ParseFile(pflag.NewFlagSet("", pflag.ContinueOnError), "again.toml", text.String())
	if err != nil || !reflect.DeepEqual(again, devices) {
		t.Errorf("written as\n%s\ndevices are read as %+v, %v; want %+v", text.Bytes(), again, err, devices)
	}
}

// FuzzDevices reads lines as values of --device.
func FuzzDevices(f *testing.F) {
	for _, s := range []string{
		"name=root,socket-path=/run/vm1-root.sock,blk-file=root.qcow2",
		"name=scratch,socket-path=/run/vm1-scratch.sock,driver=md,,size=1G",
		"socket-path=a.sock,blk-file=a.img\nsocket-path=b.sock,blk-file=b.img",
		"socket-path=a.sock,blk-file=a.img\nsocket-path=./a.sock,blk-file=b.img",
		"socket-path=a.sock,blk-file=a.img\nsocket-path=b.sock,blk-file=a.img,incoming",
		"fd=3,driver=null,,size=1T,serial=x,num-queues=4,logical-block-size=4096,migratable=off\nfd=3,name=x,driver=null,,size=1T",
		"fd=4,blk-file=a,,b,snapshot,format=vmdk,direct,bounce,no-discard=false,read-only,cancel-after=1m",
		"fd=4,driver=qemu,,file=x,,snapshot,bounce=true",
		"fd=4,driver=fault,,rule=hang:write:blocks=0-7,,lower=vnd,,file=a,,,,b",
		"type=console,socket-path=a.sock,port=driver=stdio\nsocket-path=b.sock,driver=null,,size=1M",
		"fd=3,port=driver=pty,,path=a,,,,b,port=name=x,,driver=socket,,path=c,type=console,max-ports=7,resize-order=rows-first",
		"type=console,fd=3,max-ports=2", "type=tty,fd=3", "type=console,type=console,fd=3", "type=console,fd=3,driver=null", "type",
		"socket-path=,driver=md", "socket-path=.sock,driver=null,,size=512", "fd=-1", "nonsense", "read-only=maybe", "cancel-after=-1s",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p := NewProcessFlags()
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		p.Register(fs)
		lines := strings.Split(text, "\n")
		c, err := Several(fs, p, nil, lines[:min(len(lines), 8)])
		if err != nil {
			checkRefusal(t, err, text)
			return
		}
		checkDevices(t, c.Devices)
		seen := map[string]bool{}
		for _, d := range c.Devices {
			place := fmt.Sprintf("socket %s %d", d.SocketPath, d.FD)
			if seen[d.Name] || seen[place] {
				t.Errorf("there are two of %s, %s", d.Name, place)
			}
			seen[d.Name], seen[place] = true, true
		}
	})
}

// FuzzConfigFile reads a configuration file.
func FuzzConfigFile(f *testing.F) {
	for _, s := range []string{
		"", "control = \"/run/vdev.ctl\" # the flags\nlog-level = \"warn\"\n\n[[device]]\nname = \"root\"\nsocket-path = \"/run/vm1-root.sock\"\nblk-file = \"root.qcow2\"\n",
		"control = \"c\"\ntrace = true\nlog-level = \"warn\"\nreactors = 2\npoll-us = 0\n[[device]]\nfd = 3\ndriver = \"md,size=1M\"\nlogical-block-size = 4096\n",
		"[[device]]\ntype = 'console'\nfd = 3\nport = ['driver=null', 'name=x,driver=loop']\n", "[[device]]\ntype = 'console'\nfd = 3\nport = 'driver=null'\n",
		"[[device]]\ntype = 3\n", "[[device]]\ntype = 'console'\nport = [3]\n", "[[device]]\ntype = 'blk'\nport = ['x']\n", "[[device]]\nfd = [3]\n",
		"[[device]]\nname = \"a b\"\n", "[device]\nfd = 3\n", "device = 3", "nonsense = 1", "strict = true", "control = 3", "trace = \"yes\"", "x = [", "[[device]]\nfd = \"3\"",
		"[[device]]\nfd = 3\nblk-file = 'a,b'\nserial = '\\n'\n", "log-level = \"loud\"", "reactors = 0\n", "[[device]]\n[[device]]\nfd.x = 1\n", "\xff", "a = 2020-01-01\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		NewProcessFlags().Register(fs)
		fs.Bool("strict", false, "")
		disks, err := ParseFile(fs, "vdev.toml", text)
		if err != nil {
			checkRefusal(t, err, text)
			if !strings.HasPrefix(err.Error(), "vdev.toml:") {
				t.Errorf("an error that names no file: %v", err)
			}
			return
		}
		checkDevices(t, disks)
		// What it says beside is in the flags.
		keys := map[string]any{}
		fs.Visit(func(flag *pflag.Flag) {
			switch value := flag.Value.String(); flag.Value.(type) {
			case *Number:
				n, err := strconv.Atoi(value)
				if err != nil {
					t.Fatal(err)
				}
				keys[flag.Name] = n
			default:
				keys[flag.Name] = value
				if flag.Value.Type() == "bool" {
					keys[flag.Name] = value == "true"
				}
			}
		})
		var written bytes.Buffer
		if err := toml.NewEncoder(&written).Encode(keys); err != nil {
			t.Fatal(err)
		}
		again := pflag.NewFlagSet("", pflag.ContinueOnError)
		NewProcessFlags().Register(again)
		again.Bool("strict", false, "")
		if _, err := ParseFile(again, "again.toml", written.String()); err != nil {
			t.Fatalf("%s\nis refused: %v", written.Bytes(), err)
		}
		fs.VisitAll(func(flag *pflag.Flag) {
			if got := again.Lookup(flag.Name); got.Value.String() != flag.Value.String() || got.Changed != flag.Changed {
				t.Errorf("%s is %q, and was %q", flag.Name, got.Value, flag.Value)
			}
		})
	})
}
