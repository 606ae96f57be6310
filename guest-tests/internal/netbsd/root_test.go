package netbsd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheRootHasTheAgentAndDeviceNodes(t *testing.T) {
	dir := t.TempDir()
	agent, image := filepath.Join(dir, "agent"), filepath.Join(dir, "root.img")
	if err := os.WriteFile(agent, []byte("the agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := MakeRoot(image, agent, true); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		"cat /sbin/init":    "the agent",
		"stat /interactive": "Type: regular",
		"stat /dev/console": "Device major/minor number: 00:00",
		"stat /dev/ld0a":    "Type: block special",
		"stat /dev/rld1d":   "Device major/minor number: 69:19",
		"stat /":            "User:     0",
	} {
		cmd := exec.Command("debugfs", "-R", command, image)
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/sbin:/usr/sbin")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("debugfs %s: %v\n%s\nwant it to say %q", command, err, out, want)
		}
	}
	if _, err := os.Stat(image + ".tree"); !os.IsNotExist(err) {
		t.Errorf("the tree is left behind: %v", err)
	}
}
