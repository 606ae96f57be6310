package spec

import (
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"vdev/devsw"
	"vdev/internal/dev/fault"
)

var (
	goodPorts = map[string]Port{
		"driver=stdio": {ID: AnyID, Console: true, Driver: "stdio", Watchers: -1},
		"driver=pty,path=/run/vm1.tty,size=100x40,scrollback=64K": {
			ID: AnyID, Console: true, Driver: "pty", Path: "/run/vm1.tty", Watchers: -1, Scrollback: 64 << 10, Size: devsw.Winsize{Col: 100, Row: 40}},
		"name=org.qemu.guest_agent.0,driver=socket,path=/run/a,,b.sock,watchers=0": {
			ID: AnyID, Name: "org.qemu.guest_agent.0", Driver: "socket", Path: "/run/a,b.sock", Wait: true},
		"id=3,name=x,overflow=drop,driver=socket,address=[::1]:4444,connect": {
			ID: 3, Name: "x", Driver: "socket", Address: "[::1]:4444", Connect: true, Watchers: -1},
		"name=boot,console,driver=file,file=boot.log,timestamps,max-size=1M,max-files=3": {
			ID: AnyID, Name: "boot", Console: true, Driver: "file", Path: "boot.log", Watchers: -1,
			File: Rotation{Timestamps: true, MaxSize: 1 << 20, MaxFiles: 3}},
		"driver=null,console=off,log=l,log-timestamps=on,log-max-size=8K": {
			ID: AnyID, Driver: "null", Wait: true, Watchers: -1, Log: &Log{"l", Rotation{Timestamps: true, MaxSize: 8 << 10}}},
		"driver=fault,rule=hang:write:count=1,rule=error:read,path=x,lower=pty": {
			ID: AnyID, Console: true, Driver: "pty", Path: "x", Watchers: -1, Faulty: true, Faults: []fault.Rule{
				{Action: fault.Hang, Ops: fault.Write, Count: 1}, {Action: fault.Error, Ops: fault.Read}}},
		"driver=loop,id=0": {ID: 0, Console: true, Driver: "loop", Watchers: -1},
	}
	badPorts = map[string]string{
		"":                                           "the option driver is missing: pty, stdio, socket, file, null, loop or fault",
		"name=x":                                     "the option driver is missing",
		"driver=tty":                                 `driver "tty": must be pty, stdio`,
		"driver=null,path=x":                         `a port with driver=null has no option "path"; it has name, id,`,
		"driver=null,":                               `has no option ""`,
		"driver=null,driver=null":                    "driver is given twice",
		"driver=null,id=1,id=2":                      "id is given twice",
		"driver=null,id=31":                          "id=31: must be a whole number from 0 to 30",
		"driver=null,name=a/b":                       `name "a/b": must be of letters`,
		"driver=null,name=":                          `name "": must be of letters`,
		"driver=null,name=17":                        `name "17": would be taken for an id`,
		"driver=null,console=perhaps":                "console=perhaps: must be on or off",
		"driver=null,console=on,overflow=wait":       "overflow=wait: a console has overflow=drop, since a guest's CPU stands still while its console waits",
		"driver=null,overflow=wait":                  "console=off makes a port of it",
		"driver=null,overflow=never":                 "overflow=never: must be drop or wait",
		"driver=null,size=100":                       "size=100: must be COLUMNSxROWS, such as 100x40",
		"driver=null,size=0x40":                      "must be COLUMNSxROWS",
		"driver=null,size=100x65536":                 "must be COLUMNSxROWS",
		"driver=null,name=x,size=80x25":              "size: only a console has one",
		"driver=null,scrollback=1K":                  "scrollback=1K: must be from 4K to 1G",
		"driver=null,scrollback=lots":                `size "lots": must be a number of bytes`,
		"driver=pty":                                 "driver=pty needs the option path=PATH",
		"driver=pty,path=":                           "path: a path is missing",
		"driver=file":                                "driver=file needs the option file=PATH",
		"driver=file,file=a,max-files=2":             "max-files goes with max-size",
		"driver=file,file=a,max-size=1":              "max-size=1: must be at least 4K",
		"driver=file,file=a,max-size=1M,max-files=0": "max-files=0: must be a whole number from 1 to 1000",
		"driver=file,file=a,log=./a":                 "log=./a: is the path of the port itself",
		"driver=socket":                              "driver=socket needs either path=PATH or address=HOST:PORT",
		"driver=socket,path=a,address=b:1":           "driver=socket needs either",
		"driver=socket,address=:4444":                `address ":4444": must be HOST:PORT, such as 127.0.0.1:4444`,
		"driver=socket,address=host":                 "must be HOST:PORT",
		"driver=socket,path=a,connect,watchers=2":    "watchers: with connect there is one client, vdev",
		"driver=socket,path=a,watchers=65":           "watchers=65: must be a whole number from 0 to 64",
		"driver=null,log-timestamps":                 "log-timestamps, log-max-size and log-max-files go with log=PATH",
		"driver=fault":                               "driver=fault needs the option lower=NAME, and that driver's options",
		"driver=fault,lower=fault":                   `driver "fault": must be pty, stdio, socket, file, null or loop`,
		"driver=null,rule=hang:read":                 `has no option "rule"`,
		"driver=fault,lower=null,rule=hang":          `rule "hang": an operation is missing`,
		"driver=fault,lower=null,rule=hang:flush":    `rule "hang:flush": a port of a console has the operations read, write, open, close and cancel`,
		"driver=fault,lower=null,lower=loop":         "lower is given twice",
		"driver=null,log=":                           "log: a path is missing",
		"driver=null,log=a,log-max-files=2":          "log-max-files goes with log-max-size",
	}
)

func TestPorts(t *testing.T) {
	for s, want := range goodPorts {
		if got, err := ParsePort(s); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ParsePort(%q) = %+v, %v; want %+v", s, got, err, want)
		}
	}
	for s, want := range badPorts {
		if got, err := ParsePort(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParsePort(%q) = %+v, %v; want an error that says %q", s, got, err, want)
		}
	}
}

// console reads the flags of a console.
func console(args ...string) (Device, error) {
	f := NewConsoleFlags()
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.Register(fs)
	if err := fs.Parse(append([]string{"--socket-path", "s"}, args...)); err != nil {
		return Device{}, err
	}
	return f.Config(fs.Changed)
}

func TestAConsoleHasTheQueuesThatItsPortsNeed(t *testing.T) {
	for _, c := range []struct {
		args   []string
		queues int
		ids    []int
	}{
		{[]string{"--port", "driver=null"}, 2, []int{0}},
		{[]string{"--port", "driver=null,id=0"}, 2, []int{0}},
		{[]string{"--port", "driver=null", "--multiport=on"}, 10, []int{0}},
		{[]string{"--port", "driver=null,name=x"}, 10, []int{0}},
		{[]string{"--port", "driver=null,id=1"}, 10, []int{1}},
		{[]string{"--port", "driver=null,id=6", "--port", "driver=null"}, 16, []int{0, 6}},
		{[]string{"--port", "driver=null", "--port", "driver=null,id=0", "--port", "driver=null"}, 10, []int{0, 1, 2}},
		{[]string{"--port", "driver=null", "--max-ports", "1"}, 4, []int{0}},
		{[]string{"--max-ports", "31"}, 64, nil},
		{[]string{"--port", "driver=null", "--port", "driver=null", "--port", "driver=null", "--port", "driver=null", "--port", "driver=null"}, 12, []int{0, 1, 2, 3, 4}},
	} {
		d, err := console(c.args...)
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		var ids []int
		for _, p := range d.Console.Ports {
			ids = append(ids, p.ID)
		}
		if got := d.Console.Queues(); got != c.queues || !reflect.DeepEqual(ids, c.ids) {
			t.Errorf("%q: %d queues and the ports %v, want %d and %v", c.args, got, ids, c.queues, c.ids)
		}
	}
}

func TestAConsoleThatIsRefusedIsToldWhatWouldBeRight(t *testing.T) {
	for want, args := range map[string][]string{
		"--port is missing: --port driver=pty,path=LINK":                                    {},
		"--multiport=off: there can be one port then":                                       {"--multiport=off", "--port", "driver=null", "--port", "driver=null"},
		"--multiport=off: there can be one port":                                            {"--multiport=off", "--port", "driver=null,name=x"},
		"--multiport=off: there can be":                                                     {"--multiport=off", "--port", "driver=null", "--max-ports=2"},
		"console=off: the only port of a device without MULTIPORT":                          {"--port", "driver=null,console=off"},
		"--port id=1,driver=null: there are two ports with the id 1":                        {"--port", "driver=null,id=1", "--port", "id=1,driver=null"},
		"--port name=a,driver=loop: there are two ports with the name a":                    {"--port", "driver=null,name=a", "--port", "name=a,driver=loop"},
		"id=2: must be less than 2 (--max-ports)":                                           {"--port", "driver=null,id=2", "--max-ports", "2"},
		"there is room for 2 ports (--max-ports), and there are as many":                    {"--port", "driver=null", "--port", "driver=null", "--port", "driver=null", "--max-ports", "2"},
		"another port has vdev's standard input, too":                                       {"--port", "driver=stdio", "--port", "driver=stdio,name=x"},
		"another port has the path /run/a, too":                                             {"--port", "driver=pty,path=/run/a", "--port", "driver=null,log=/run/./a"},
		"another port has the address 127.0.0.1:5, too":                                     {"--port", "driver=socket,address=127.0.0.1:5", "--port", "driver=socket,address=127.0.0.1:5"},
		`invalid argument "32" for "--max-ports" flag: must be a whole number from 1 to 31`: {"--max-ports", "32"},
	} {
		if d, err := console(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want an error that says %q", args, d.Console, err, want)
		}
	}
	if _, err := console("--port", "driver=socket,connect,address=127.0.0.1:5", "--port", "driver=socket,connect,address=127.0.0.1:5"); err != nil {
		t.Errorf("two clients of one server: %v", err)
	}
}

func TestAPortHasNothingThatSomethingElseHas(t *testing.T) {
	for want, devices := range map[string][]string{
		"device a's port 0 and device b's port x both have vdev's standard input": {
			"type=console,socket-path=a,port=driver=stdio", "socket-path=b,type=console,port=name=x,,driver=stdio"},
		"device d's image and device a's port 0 both have the path disk.img": {
			"type=console,socket-path=a,port=driver=file,,file=./disk.img", "socket-path=d,blk-file=disk.img"},
		"device a's front-end's socket and device a's port 0 both have the path a": {"type=console,socket-path=a,port=driver=socket,,path=a"},
		"--control and device a's port 0 both have the path ctl":                   {"type=console,socket-path=a,port=driver=pty,,path=ctl"},
	} {
		p := NewProcessFlags()
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		p.Register(fs)
		if err := fs.Parse([]string{"--control", "ctl"}); err != nil {
			t.Fatal(err)
		}
		if _, err := Several(fs, p, nil, devices); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", devices, err, want)
		}
	}
}
