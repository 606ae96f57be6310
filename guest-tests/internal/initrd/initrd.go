// Package initrd makes the initramfs of a Linux test guest: the agent as /init, a busybox, and the
// kernel modules that the disks need, in the order in which they must be loaded.
package initrd

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// wanted are the modules a test guest uses. What a kernel has built in needs no file.
var wanted = []string{"virtio_pci", "virtio_blk", "ext4", "virtio_rng", "virtio_console"}

// Build returns an initramfs for the Linux kernel that scripts/setup put into linuxDir: vmlinuz,
// busybox, and its modules below modules/. agent is the file of the agent, built for that kernel.
func Build(linuxDir, agent string) ([]byte, error) {
	modules, err := findModules(filepath.Join(linuxDir, "modules"))
	if err != nil {
		return nil, err
	}
	var a archive
	for _, dir := range []string{"bin", "dev", "etc", "mnt", "modules", "proc", "root", "sys", "tmp"} {
		a.add(dir, modeDir|0o755, device{}, nil)
	}
	// The kernel opens the console, and Go's runtime the null device, before anything is mounted.
	a.add("dev/console", modeChar|0o600, device{5, 1}, nil)
	a.add("dev/null", modeChar|0o666, device{1, 3}, nil)
	// Who logs in needs no password.
	a.add("etc/passwd", modeFile|0o644, device{}, []byte("root::0:0::/:/bin/sh\n"))
	for _, f := range []struct{ name, from string }{{"init", agent}, {"bin/busybox", filepath.Join(linuxDir, "busybox")}} {
		data, err := os.ReadFile(f.from)
		if err != nil {
			return nil, err
		}
		a.add(f.name, modeFile|0o755, device{}, data)
	}
	for _, applet := range []string{"sh", "ls", "cat", "cp", "dd", "df", "mke2fs", "md5sum", "getty", "kill", "login", "seq", "sleep", "stty", "taskset", "vi"} {
		a.add("bin/"+applet, modeLink|0o777, device{}, []byte("busybox"))
	}
	var order bytes.Buffer
	err = modules.load(wanted, func(name string, data []byte) {
		fmt.Fprintln(&order, name)
		a.add("modules/"+name, modeFile|0o644, device{}, data)
	})
	if err != nil {
		return nil, err
	}
	a.add("modules/order", modeFile|0o644, device{}, order.Bytes())
	return a.finish(), nil
}

// moduleSet is what a kernel has of modules, by names with underscores.
type moduleSet struct {
	files   map[string]string
	builtin map[string]bool
}

// findModules looks through a kernel's module tree.
func findModules(dir string) (moduleSet, error) {
	set := moduleSet{map[string]string{}, map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == "modules.builtin" {
			return set.readBuiltin(path)
		}
		if name, _, ok := strings.Cut(d.Name(), ".ko"); ok && d.Type().IsRegular() {
			set.files[moduleName(name)] = path
		}
		return nil
	})
	if err == nil && len(set.builtin) == 0 {
		err = fmt.Errorf("%s: no modules.builtin", dir)
	}
	return set, err
}

func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

func (s moduleSet) readBuiltin(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		s.builtin[moduleName(strings.TrimSuffix(filepath.Base(lines.Text()), ".ko"))] = true
	}
	return lines.Err()
}

// load calls add for the wanted modules and what they depend on, in the order for loading.
func (s moduleSet) load(names []string, add func(name string, data []byte)) error {
	done := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if done[name] || s.builtin[name] {
			return nil
		}
		done[name] = true
		path, ok := s.files[name]
		if !ok {
			return fmt.Errorf("the kernel has no module %s", name)
		}
		data, err := readModule(path)
		if err != nil {
			return err
		}
		needs, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, n := range needs {
			if err := visit(moduleName(n)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		add(name+".ko", data)
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return err
		}
	}
	return nil
}

// readModule reads a module, which may be compressed.
func readModule(path string) ([]byte, error) {
	tool, ok := map[string]string{".ko": "cat", ".xz": "xz", ".zst": "zstd", ".gz": "gzip"}[filepath.Ext(path)]
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: unknown compression", path)
	case tool == "cat":
		return os.ReadFile(path)
	}
	data, err := exec.Command(tool, "-dc", path).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}

// dependencies reads the names of the modules that one needs from its own description.
func dependencies(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	info := f.Section(".modinfo")
	if info == nil {
		return nil, errors.New("no .modinfo")
	}
	data, err := info.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(data), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
