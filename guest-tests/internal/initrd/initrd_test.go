package initrd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

func TestCpioUnpacksWhatTheArchiveHolds(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("no cpio to compare with")
	}
	var a archive
	a.add("dir", modeDir|0o755, device{}, nil)
	a.add("dir/odd", modeFile|0o640, device{}, []byte("seven b"))
	a.add("dir/link", modeLink|0o777, device{}, []byte("odd"))
	dir := t.TempDir()
	cmd := exec.Command(cpio, "-i", "--quiet")
	cmd.Dir = dir
	cmd.Stdin = bytes.NewReader(a.finish())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "dir/link")); err != nil || string(got) != "seven b" {
		t.Errorf("through the link: %q, %v", got, err)
	}
	if st, err := os.Stat(filepath.Join(dir, "dir/odd")); err != nil || st.Mode() != 0o640 {
		t.Errorf("mode %v, %v; want 0640", st.Mode(), err)
	}
}

// TestModulesComeAfterWhatTheyNeed uses objects that the assembler makes: all that counts is their
// .modinfo.
func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	as, err := exec.LookPath("as")
	if err != nil {
		t.Skip("no assembler to make modules with")
	}
	dir := t.TempDir()
	for name, depends := range map[string]string{"top-one": "mid,built-in", "mid": "low-one", "low-one": ""} {
		cmd := exec.Command(as, "-o", filepath.Join(dir, name+".ko"))
		cmd.Stdin = bytes.NewReader([]byte(".section .modinfo\n.asciz \"license=GPL\"\n.asciz \"depends=" + depends + "\"\n"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("as: %v\n%s", err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/x/built-in.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	set, err := findModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	add := func(name string, _ []byte) { order = append(order, name) }
	if err := set.load([]string{"top_one", "built_in", "mid"}, add); err != nil {
		t.Fatal(err)
	}
	if want := []string{"low_one.ko", "mid.ko", "top_one.ko"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if err := set.load([]string{"missing"}, add); err == nil {
		t.Error("a module that does not exist was found")
	}
}
