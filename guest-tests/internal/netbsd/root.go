// Package netbsd makes the root file system of a NetBSD test guest.
package netbsd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// InteractiveFile is the file in the root whose presence has the agent talk to a person.
const InteractiveFile = "interactive"

// MakeRoot makes image, a root of 32 MiB with the agent as /sbin/init, by mke2fs and debugfs.
// interactive makes the agent talk to a person instead of to a test.
func MakeRoot(image, agent string, interactive bool) error {
	tree := image + ".tree"
	defer os.RemoveAll(tree)
	for _, dir := range []string{"dev", "sbin", "mnt", "tmp"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(agent)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tree, "sbin/init"), data, 0o755); err != nil {
		return err
	}
	if interactive {
		if err := os.WriteFile(filepath.Join(tree, InteractiveFile), nil, 0o644); err != nil {
			return err
		}
	}
	// NetBSD's ext2fs reads the classic format: small inodes and none of the newer features.
	if err := run("", "mke2fs", "-q", "-F", "-t", "ext2", "-b", "4096", "-I", "128", "-O", "none,filetype,sparse_super",
		"-E", "root_owner=0:0", "-d", tree, image, "32M"); err != nil {
		return err
	}
	return run(nodes(), "debugfs", "-w", "-f", "-", image)
}

// nodes are debugfs commands for the device nodes of a NetBSD root. A disk's minor number is 16
// times the unit plus the partition, of which d is the whole disk on amd64. (NetBSD,
// sys/conf/majors, sys/arch/amd64/conf/majors.amd64)
func nodes() string {
	var b strings.Builder
	fmt.Fprintln(&b, "cd /dev")
	for _, n := range []struct {
		name         string
		major, minor int
	}{{"console", 0, 0}, {"null", 2, 2}, {"zero", 2, 12}, {"drvctl", 167, 0}, {"ttyVI00", 364, 0}} {
		fmt.Fprintf(&b, "mknod %s c %d %d\n", n.name, n.major, n.minor)
	}
	for unit := range 4 {
		for _, part := range []struct {
			letter string
			number int
		}{{"a", 0}, {"d", 3}} {
			minor := unit*16 + part.number
			fmt.Fprintf(&b, "mknod ld%d%s b 19 %d\nmknod rld%d%s c 69 %d\n", unit, part.letter, minor, unit, part.letter, minor)
		}
	}
	return b.String()
}

// run runs a program of e2fsprogs, which a user's PATH may not have.
func run(stdin, name string, args ...string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		path = filepath.Join("/sbin", name)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}
