package blk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vdev/internal/dev/qemunbd"
	"vdev/internal/spec"
)

func TestAFileIsServedByWhoeverKnowsItsFormat(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	const magic = "QFI\xfb\x00\x00\x00\x03"
	raw, qcow2, odd := file("a.img", ""), file("a.qcow2", magic), file("b.img", magic)
	for name, tt := range map[string]struct {
		spec           spec.Driver
		driver, format string
		doubt          bool
	}{
		"raw":                  {spec.Driver{Name: "vnd", Detect: true, File: raw}, "vnd", "raw", false},
		"qcow2":                {spec.Driver{Name: "vnd", Detect: true, File: qcow2}, "qemu", "qcow2", false},
		"said to be raw":       {spec.Driver{Name: "vnd", Detect: true, File: odd, QEMU: spec.QEMU{Format: "raw"}}, "vnd", "raw", false},
		"said to be qcow2":     {spec.Driver{Name: "vnd", Detect: true, File: odd, QEMU: spec.QEMU{Format: "qcow2"}}, "qemu", "qcow2", false},
		"raw, with a snapshot": {spec.Driver{Name: "vnd", Detect: true, File: raw, QEMU: spec.QEMU{Snapshot: true}}, "qemu", "raw", false},
		"what a guest wrote":   {spec.Driver{Name: "vnd", Detect: true, File: odd}, "vnd", "raw", true},
		"the same, by qemu":    {spec.Driver{Name: "qemu", File: odd}, "qemu", "raw", true},
		"the driver vnd":       {spec.Driver{Name: "vnd", File: qcow2}, "vnd", "", false},
		"the driver qemu":      {spec.Driver{Name: "qemu", File: qcow2}, "qemu", "qcow2", false},
		"the driver qemu, raw": {spec.Driver{Name: "qemu", File: raw}, "qemu", "raw", false},
	} {
		t.Run(name, func(t *testing.T) {
			warned := ""
			got, err := settle(tt.spec, func(text string) { warned += text })
			if doubt := strings.Contains(warned, "which a guest may have written there"); doubt != tt.doubt {
				t.Errorf("settle warns %q", warned)
			}
			if err != nil || got.Name != tt.driver || got.QEMU.Format != tt.format || got.Detect {
				t.Errorf("settle: driver %s, format %s, %v; want %s, %s", got.Name, got.QEMU.Format, err, tt.driver, tt.format)
			}
		})
	}
	wrong := file("c.qcow2", "")
	for _, spec := range []spec.Driver{{Name: "vnd", Detect: true, File: wrong}, {Name: "qemu", File: wrong}} {
		var format *qemunbd.FormatError
		if got, err := settle(spec, func(string) {}); !errors.As(err, &format) {
			t.Errorf("%s: settle gives %+v, %v", spec.Name, got, err)
		}
	}
}
