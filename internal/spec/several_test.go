package spec

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestADeviceThatIsRefusedIsToldWhatWouldBeRight(t *testing.T) {
	for text, want := range map[string]string{
		"read-only=maybe":             `read-only = "maybe": must be true or false`,
		"cancel-after=5":              `cancel-after = "5": must be a time, such as 10s`,
		"num-queues=0":                `num-queues = "0": must be a whole number from 1 to 256`,
		"migratable=yes":              `migratable = "yes": must be on or off`,
		"fd=3,fd=4":                   "fd is given twice",
		"nonsense":                    `"nonsense" is not key=value`,
		"nonsense=1":                  `there is no key "nonsense"; it is the flags of 'vdev blk' that describe a disk, and name and type`,
		"type=tty,fd=3":               `type "tty": must be blk or console`,
		"type":                        `"type" is not key=value`,
		"type=console,fd=3,driver=md": `there is no key "driver"; it is the flags of 'vdev console' that describe a console, and name and type`,
		"type=console,type=console":   "type is given twice",
		"type=console,fd=3":           "--port is missing: --port driver=pty,path=LINK, say; or --max-ports N, for ports that are added later",
		"name=a b":                    `name "a b": must be of letters, digits, ., _ and -, and begin with a letter or a digit`,
	} {
		if d, err := parseDevice(text); err == nil || err.Error() != want {
			t.Errorf("%s: %+v, %v; want the error %s", text, d, err, want)
		}
	}
	_, err := parseDevice("cancel-after=" + strings.Repeat("\x8a", 100))
	if err == nil || len(err.Error()) > 500 {
		t.Errorf("%d bytes of an error: %v", len(err.Error()), err)
	}
}

func TestTheFileTakesStrictAsTheCommandLineDoes(t *testing.T) {
	const disk = "\n[[device]]\nfd = 3\ndriver = \"md,size=1M\"\n"
	for name, c := range map[string]struct {
		args []string
		text string
		want bool
	}{
		"neither":                     {nil, "", false},
		"the file":                    {nil, "strict = true", true},
		"the command line goes first": {[]string{"--strict=false"}, "strict = true", false},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewProcessFlags()
			fs := pflag.NewFlagSet("", pflag.ContinueOnError)
			fs.BoolVar(&p.Strict, "strict", false, "")
			p.Register(fs)
			if err := fs.Parse(c.args); err != nil {
				t.Fatal(err)
			}
			disks, err := ParseFile(fs, "vdev.toml", c.text+disk)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Several(fs, p, disks, nil)
			if err != nil || got.Strict != c.want {
				t.Errorf("strict: %v, %v; want %v", got.Strict, err, c.want)
			}
		})
	}
}
