package qemunbd

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
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
			if got, err := Detect(file); got != format || err != nil {
				t.Errorf("Detect: %q, %v; want %q", got, err, format)
			}
		})
	}
}

func TestAnImagesFormatIsNotAGuestsChoice(t *testing.T) {
	const qcow2 = "QFI\xfb\x00\x00\x00\x03"
	for name, c := range map[string]struct {
		content, want string
		err           *FormatError
	}{
		"disk.img":     {"\xeb\x63\x90", Raw, nil},
		"disk":         {"", Raw, nil},
		"disk.qcow2":   {qcow2, "qcow2", nil},
		"DISK.QCOW2":   {qcow2, "qcow2", nil},
		"guest.img":    {qcow2, "", &FormatError{Name: Raw, Content: "qcow2"}},
		"guest":        {"KDMV", "", &FormatError{Name: Raw, Content: "vmdk"}},
		"guest.qcow2":  {"\x00\x00\x00\x00\x00\x00\x00\x00", "", &FormatError{Name: "qcow2", Content: Raw}},
		"guest.vmdk":   {qcow2, "", &FormatError{Name: "vmdk", Content: "qcow2"}},
		"disk.luks":    {"LUKS\xba\xbe", Raw, nil},
		"future.qcow2": {"QFI\xfb\x00\x00\x00\x04", "", &FormatError{Name: "qcow2", Content: Raw}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := Detect(file)
			if got != c.want {
				t.Errorf("Detect: %q, want %q", got, c.want)
			}
			var wrong *FormatError
			if errors.As(err, &wrong) != (c.err != nil) || wrong != nil && (wrong.Name != c.err.Name || wrong.Content != c.err.Content || wrong.File != file) {
				t.Errorf("Detect: %v, want %+v", err, c.err)
			}
		})
	}
}

func TestWhatCannotBeReadIsLeftToWhoeverOpensIt(t *testing.T) {
	for _, file := range []string{filepath.Join(t.TempDir(), "missing.qcow2"), t.TempDir(), "/dev/zero"} {
		if got, err := Detect(file); got != Raw || err != nil {
			t.Errorf("Detect(%s): %q, %v", file, got, err)
		}
	}
}
