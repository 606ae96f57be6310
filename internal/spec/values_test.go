package spec

import (
	"strings"
	"testing"
	"time"

	"vdev/internal/dev/nbd"
)

func TestSizes(t *testing.T) {
	good := map[string]int64{
		"0": 0, "512": 512, "512B": 512, "64k": 64 << 10, "64K": 64 << 10, "512M": 512 << 20, "1G": 1 << 30, "1GiB": 1 << 30,
		"1GB": 1 << 30, "1.5g": 3 << 29, "0.5K": 512, "2T": 2 << 40, "1P": 1 << 50, "7E": 7 << 60, "9223372036854775807": 1<<63 - 1,
	}
	for s, want := range good {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	bad := map[string]string{
		"": "must be a number", "G": "must be a number", "-1": "must be a number", "1 G": "must be a number", "1Q": "must be a number",
		"10iB": "must be a number", "0x10": "must be a number", "1e3": "must be a number", ".5G": "must be a number", "inf": "must be a number",
		"1.5": "not a whole number of bytes", "0.3K": "not a whole number of bytes",
		"8E": "more than a disk", "9223372036854775808": "more than a disk", "99999999999999999999999G": "more than a disk",
	}
	for s, want := range bad {
		if got, err := ParseSize(s); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), s) {
			t.Errorf("parseSize(%q) = %d, %v; want an error that says %q", s, got, err, want)
		}
	}
}

var (
	goodDrivers = map[string]Driver{
		"md,size=1G":                 {Name: "md", Size: 1 << 30},
		"md,file=boot.img,read-only": {Name: "md", File: "boot.img", ReadOnly: true},
		"md,size=64M,file=a":         {Name: "md", Size: 64 << 20, File: "a"},
		"nbd,uri=nbd://h,connections=2,reconnect-delay=3s": {Name: "nbd", NBD: NBD{URI: "nbd://h", Connections: 2, Delay: 3 * time.Second}},
		"nbd,uri=nbd://h,unflushed=kept": {
			Name: "nbd", NBD: NBD{URI: "nbd://h", Unflushed: nbd.UnflushedKept}},
		"qemu,file=x": {Name: "qemu", File: "x"},
		"qemu,file=x,format=vmdk,snapshot,detect-zeroes=unmap,program=/q": {
			Name: "qemu", File: "x", QEMU: QEMU{Format: "vmdk", Snapshot: true, DetectZeroes: "unmap", Program: "/q"}},
		"null,size=1T":                       {Name: "null", Size: 1 << 40},
		"vnd,file=/a,,b/c=d":                 {Name: "vnd", File: "/a,b/c=d"},
		"vnd,file=x,direct,no-discard":       {Name: "vnd", File: "x", Direct: true, NoDiscard: true},
		"vnd,file=x,direct,bounce":           {Name: "vnd", File: "x", Direct: true, Bounce: true},
		"vnd,file=x,direct=off,read-only=on": {Name: "vnd", File: "x", ReadOnly: true},
	}
	badDrivers = map[string]string{
		"":                        `driver "": must be vnd, md, nbd, qemu, null or fault`,
		"nvme,size=1G":            `driver "nvme": must be vnd, md, nbd, qemu, null or fault`,
		"md":                      "needs the option size=BYTES or file=PATH",
		"md,direct,size=1G":       `has no option "direct"; it has size, file, read-only`,
		"md,size=1G,":             `has no option ""`,
		"md,size=0":               `size "0": must be more than 0`,
		"md,size":                 `size "": must be a number`,
		"md,size=1000":            "size 1000 is not a multiple of 512",
		"md,size=1G,size=2G":      "size is given twice",
		"null":                    "needs the option size=BYTES",
		"vnd":                     "needs the option file=PATH",
		"vnd,file=":               "a path is missing",
		"nbd,connections=2":       "needs the option uri=URI",
		"nbd,uri=x,connections=0": "connections=0: must be a whole number from 1 to 16",
		"nbd,reconnect-delay=5":   "reconnect-delay=5: must be a time",
		"nbd,unflushed=no":        "unflushed=no: must be auto, lost or kept",
		"qemu,format=raw":         "needs the option file=PATH",
		"qemu,file=x,format=":     `format "": must be one of QEMU's`,
		"qemu,file=x,format=a,,b": `format "a,b": must be one of QEMU's`,
		"qemu,file=x,program=":    "program: a path is missing",
		"qemu,detect-zeroes=yes":  "must be off, on or unmap",
		"qemu,file=x,no-discard,detect-zeroes=unmap": "discards, and no-discard forbids that",
		"vnd,file=x,read-only=no":                    "read-only=no: must be on or off",
	}
)

func TestDriverSpecs(t *testing.T) {
	for s, want := range goodDrivers {
		if got, err := ParseDriver(s); err != nil || got != want {
			t.Errorf("parseDriver(%q) = %+v, %v; want %+v", s, got, err, want)
		}
	}
	for s, want := range badDrivers {
		if got, err := ParseDriver(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseDriver(%q) = %+v, %v; want an error that says %q", s, got, err, want)
		}
	}
}

func TestFaultsStandOnAnotherDriver(t *testing.T) {
	d, err := ParseDriver("fault,rule=hang:write:blocks=0-7,rule=error:read:seed=1:prob=0.5,cache=64K,no-cancel,lower=vnd,file=a,,b,direct")
	if err != nil {
		t.Fatal(err)
	}
	f := d.Faults
	if d.Faults = nil; d != (Driver{Name: "vnd", File: "a,b", Direct: true}) {
		t.Errorf("the lower driver is %+v", d)
	}
	if len(f.Rules) != 2 || f.Rules[0].Blocks != 8 || f.Rules[1].Prob != 0.5 || f.Cache != 64<<10 || !f.NoCancel {
		t.Errorf("its faults are %+v", *f)
	}
}

func TestSizesAreWrittenAsTheyAreRead(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0", 512: "512", 1536: "1536", 4096: "4K", 1 << 20: "1M", 5 << 30: "5G", 3 << 40: "3T", 1<<50 + 1<<40: "1025T"} {
		got := SizeText(bytes)
		if back, err := ParseSize(got); got != want || err != nil || back != bytes {
			t.Errorf("%d is %q, want %q, and is read as %d, %v", bytes, got, want, back, err)
		}
	}
}
