package qemunbd

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestEveryFormatIsFoundThatQEMUMakes(t *testing.T) {
	img, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("qemu-img is not installed")
	}
	for suffix, format := range suffixes {
		t.Run(suffix, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "disk"+suffix)
			if out, err := exec.Command(img, "create", "-q", "-f", format, file, "8M").CombinedOutput(); err != nil {
				t.Skipf("this qemu-img makes no %s: %v: %s", format, err, out)
			}
			if got, doubt, err := Detect(file); got != format || doubt != nil || err != nil {
				t.Errorf("Detect: %q, %v, %v; want %q", got, doubt, err, format)
			}
		})
	}
}

// TestAFixedVHDIsFoundByItsFooter, as it has nothing before its data.
func TestAFixedVHDIsFoundByItsFooter(t *testing.T) {
	program, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("qemu-img is not installed")
	}
	file := filepath.Join(t.TempDir(), "disk.vhd")
	args := []string{"create", "-q", "-f", "vpc", "-o", "subformat=fixed", file, "8M"}
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, doubt, err := Detect(file); got != "vpc" || doubt != nil || err != nil {
		t.Errorf("Detect: %q, %v, %v", got, doubt, err)
	}
	raw := strings.TrimSuffix(file, ".vhd") + ".img"
	if err := os.Rename(file, raw); err != nil {
		t.Fatal(err)
	}
	if got, doubt, err := Detect(raw); got != Raw || doubt == nil || err != nil ||
		!strings.Contains(doubt.Error(), "begins or ends like a vpc image") {
		t.Errorf("Detect: %q, %v, %v", got, doubt, err)
	}
}

func TestAnImagesFormatIsNotAGuestsChoice(t *testing.T) {
	const qcow2 = "QFI\xfb\x00\x00\x00\x03"
	for name, c := range map[string]struct {
		content, want string
		doubt, err    *FormatError
	}{
		"disk.img":     {"\xeb\x63\x90", Raw, nil, nil},
		"disk":         {"", Raw, nil, nil},
		"disk.qcow2":   {qcow2, "qcow2", nil, nil},
		"DISK.QCOW2":   {qcow2, "qcow2", nil, nil},
		"guest.img":    {qcow2, Raw, &FormatError{Name: Raw, Content: "qcow2"}, nil},
		"guest":        {"KDMV", Raw, &FormatError{Name: Raw, Content: "vmdk"}, nil},
		"guest.qcow2":  {"\x00\x00\x00\x00\x00\x00\x00\x00", "", nil, &FormatError{Name: "qcow2", Content: Raw}},
		"guest.vmdk":   {qcow2, "", nil, &FormatError{Name: "vmdk", Content: "qcow2"}},
		"disk.luks":    {"LUKS\xba\xbe", Raw, nil, nil},
		"fixed.vhd":    {strings.Repeat("\x00", 1024) + "conectix" + strings.Repeat("\x00", 504), "vpc", nil, nil},
		"fixed.img":    {strings.Repeat("\x00", 1024) + "conectix" + strings.Repeat("\x00", 504), Raw, &FormatError{Name: Raw, Content: "vpc"}, nil},
		"future.qcow2": {"QFI\xfb\x00\x00\x00\x04", "", nil, &FormatError{Name: "qcow2", Content: Raw}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, doubt, err := Detect(file)
			if got != c.want {
				t.Errorf("Detect: %q, want %q", got, c.want)
			}
			var wrong *FormatError
			errors.As(err, &wrong)
			for what, p := range map[string][2]*FormatError{"doubt": {doubt, c.doubt}, "error": {wrong, c.err}} {
				if p[1] != nil {
					p[1].File = file
				}
				if (p[0] == nil) != (p[1] == nil) || p[0] != nil && *p[0] != *p[1] {
					t.Errorf("%s %v, want %v", what, p[0], p[1])
				}
			}
		})
	}
}

func TestWhatCannotBeReadIsLeftToWhoeverOpensIt(t *testing.T) {
	for file, want := range map[string]string{
		filepath.Join(t.TempDir(), "missing.qcow2"): "qcow2",
		filepath.Join(t.TempDir(), "missing.img"):   Raw,
		t.TempDir(): Raw,
		"/dev/zero": Raw,
	} {
		if got, doubt, err := Detect(file); got != want || doubt != nil || err != nil {
			t.Errorf("Detect(%s): %q, %v, %v", file, got, doubt, err)
		}
	}
}
