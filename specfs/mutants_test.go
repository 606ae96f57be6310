//go:build mutants

package specfs

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Each defect is put into the code, one at a time, and the tests must fail: the
// ordinary ones, or those of every order.
func TestMutants(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.what, "/", " "), func(t *testing.T) {
			path := filepath.Join(root, m.file)
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(src), m.from); n != 1 {
				t.Fatalf("what is to be changed stands %d times in %s", n, m.file)
			}
			dir := t.TempDir()
			changed := filepath.Join(dir, "changed.go")
			if err := os.WriteFile(changed, []byte(strings.Replace(string(src), m.from, m.to, 1)), 0o666); err != nil {
				t.Fatal(err)
			}
			overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "overlay.json")
			if err := os.WriteFile(file, overlay, 0o666); err != nil {
				t.Fatal(err)
			}
			for _, tags := range []string{"", "vdevsteps"} {
				cmd := exec.Command("go", "test", "-count=1", "-timeout=30s", "-overlay", file, "-tags", tags, "./devsw", "./specfs", "-rapid.nofailfile", "-rapid.shrinktime=1ms")
				cmd.Dir = root
				out, err := cmd.CombinedOutput()
				if strings.Contains(string(out), "[build failed]") || strings.Contains(string(out), "[setup failed]") {
					t.Fatalf("the defect does not compile:\n%s", out)
				}
				if err != nil {
					t.Logf("caught (tags %q) by %s", tags, firstFailure(string(out)))
					return
				}
			}
			t.Error("no test fails")
		})
	}
}

// firstFailure names the test that failed first.
func firstFailure(out string) string {
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		for _, p := range []string{"--- FAIL: ", "panic: ", "fatal error: "} {
			if strings.HasPrefix(line, p) {
				return line
			}
		}
	}
	return "something"
}
