package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module  = "vdev"
	unixPkg = "golang.org/x/sys/unix"
)

// layers says for each package which packages of this module it may import. A name that ends in
// "/..." stands for every package below it. Tests may import more (see testLayers): they look at a
// package from above.
//
// The direction is cmd/vdev -> internal/serve -> device models -> specfs -> devsw <- drivers;
// device models -> virtq -> guestmem -> sys; vhostuser -> virtq. devsw and specfs know nothing of
// virtio, virtq nothing of devices, vhostuser nothing of what stands behind its Device, but for the
// transfers of files (devsw.AIO) that its reactors have for drivers, and internal/serve nothing of
// what kinds of devices there are.
var layers = map[string][]string{
	"cmd/vdev": {"internal/serve", "internal/serve/blk", "internal/serve/console", "internal/terminal", "vhostuser", "internal/dev/fault", "internal/dev/qemunbd", "internal/spec", "internal/trace", "internal/control", "internal/bench/load", "internal/bench/chart"},

	"internal/serve":         {"vhostuser", "specfs", "devsw", "internal/control", "internal/trace", "internal/offload", "internal/tasks"},
	"internal/serve/faulty":  {"internal/serve", "internal/control", "internal/dev/fault", "devsw"},
	"internal/serve/console": {"internal/serve", "internal/serve/faulty", "vhostuser/virtioconsole", "vhostuser", "devsw", "devsw/line", "internal/dev/...", "internal/terminal", "internal/spec", "internal/control"},
	"internal/serve/blk":     {"internal/serve", "internal/serve/faulty", "vhostuser/virtioblk", "vhostuser", "devsw", "internal/dev/...", "internal/spec", "internal/control"},

	"vhostuser":               {"virtq", "devsw", "internal/reactor", "internal/guestmem", "internal/sys"},
	"vhostuser/virtioconsole": {"vhostuser", "virtq", "specfs", "devsw"},
	"vhostuser/vhostusertest": {"vhostuser", "virtq", "virtq/virtqtest", "internal/guestmem", "internal/sys"},
	"virtq":                   {"internal/guestmem", "internal/sys"},
	"virtq/virtqtest":         {"virtq", "internal/guestmem", "internal/sys"},
	"devsw":                   {},
	"specfs":                  {"devsw"},

	"internal/spec":          {"devsw", "internal/dev/fault", "internal/dev/nbd", "internal/dev/qemunbd", "vhostuser/virtioblk"},
	"vhostuser/virtioblk":    {"vhostuser", "virtq", "specfs", "devsw", "internal/offload"},
	"internal/offload":       {},
	"internal/tasks":         {"internal/sys"},
	"devsw/disk":             {"devsw", "internal/units"},
	"devsw/line":             {"devsw", "internal/units"},
	"internal/units":         {"devsw"},
	"internal/ready":         {"internal/sys"},
	"internal/dev/sock":      {"devsw/line", "internal/ready", "internal/sys"},
	"internal/dev/imagefile": {"devsw", "internal/sys"},
	"internal/test/disktest": {"devsw", "internal/sys"},
	"internal/test/halt":     {"internal/sys"},
	"internal/test/hangfs":   {"internal/sys"},
	"internal/test/loopfs":   {"internal/sys"},
	"internal/dev/md":        {"devsw", "devsw/disk", "internal/dev/imagefile", "internal/sys"},
	"internal/dev/vnd":       {"devsw", "devsw/disk", "internal/dev/imagefile", "internal/sys"},
	"internal/dev/null":      {"devsw", "devsw/disk"},
	"internal/dev/nbd":       {"devsw", "devsw/disk", "internal/sys"},
	"internal/dev/fault":     {"devsw", "devsw/disk", "internal/units"},
	"internal/dev/pty":       {"devsw", "devsw/line", "internal/ready", "internal/sys"},
	"internal/dev/stdio":     {"devsw", "devsw/line", "internal/terminal"},
	"internal/dev/logfile":   {"devsw/line", "internal/sys"},
	"internal/test/linetest": {"devsw", "devsw/line"},
	"internal/dev/qemunbd":   {"devsw", "internal/child", "internal/sys"},
	"internal/child":         {"internal/sys"},
	"internal/terminal":      {"internal/sys"},
	"internal/reactor":       {"devsw", "internal/uring", "internal/sys"},
	"internal/guestmem":      {"internal/sys"},
	"internal/uring":         {"internal/sys"},
	"internal/sys":           {},
	"internal/trace":         {},
	"internal/control":       {"internal/trace", "internal/sys"},
	"internal/lint":          {},
	"internal/mutants":       {},
	"internal/bench":         {"internal/bench/chart", "internal/child", "internal/bench/load", "internal/bench/qtest", "internal/bench/scale", "internal/sys"},
	"internal/testreport":    {},
	"internal/bench/chart":   {},
	"internal/bench/scale":   {"internal/child", "vhostuser", "vhostuser/vhostusertest", "virtq", "virtq/virtqtest", "internal/sys"},
	"internal/bench/load":    {"vhostuser", "vhostuser/vhostusertest", "virtq", "virtq/virtqtest", "internal/guestmem", "internal/sys", "internal/test/consoletest"},

	"internal/bench/qtest":      {"internal/child", "vhostuser", "vhostuser/vhostusertest", "virtq/virtqtest", "internal/sys"},
	"internal/test/consoletest": {"vhostuser", "vhostuser/vhostusertest", "virtq", "virtq/virtqtest", "internal/sys"},
}

// public are the packages that other projects build on. They leave logging, printing and the end of
// the process to their user.
var public = []string{"vhostuser", "vhostuser/vhostusertest", "virtq", "virtq/virtqtest", "devsw", "devsw/disk", "devsw/line", "specfs", "vhostuser/virtioblk", "vhostuser/virtioconsole"}

// blind lists packages that must not reach others even through a third one: what is public for its
// own sake would otherwise drag in what it is meant to know nothing of.
var blind = map[string][]string{
	"devsw":              {"virtq", "vhostuser", "internal/guestmem", "vhostuser/virtioblk", "vhostuser/virtioconsole", "internal/reactor", "internal/uring"},
	"specfs":             {"virtq", "vhostuser", "internal/guestmem", "vhostuser/virtioblk", "vhostuser/virtioconsole", "internal/reactor", "internal/uring"},
	"virtq":              {"devsw", "specfs", "vhostuser", "vhostuser/virtioblk", "vhostuser/virtioconsole", "internal/reactor"},
	"internal/guestmem":  {"devsw", "specfs", "virtq", "vhostuser"},
	"vhostuser":          {"specfs", "vhostuser/virtioblk", "vhostuser/virtioconsole"},
	"internal/serve":     {"vhostuser/virtioblk", "vhostuser/virtioconsole", "devsw/disk", "internal/spec", "internal/dev/md", "internal/dev/vnd", "internal/dev/nbd", "internal/dev/fault", "internal/dev/qemunbd"},
	"devsw/disk":         {"specfs", "virtq", "vhostuser", "vhostuser/virtioblk"},
	"devsw/line":         {"specfs", "virtq", "vhostuser", "vhostuser/virtioblk", "vhostuser/virtioconsole"},
	"internal/dev/sock":  {"specfs", "virtq", "vhostuser", "vhostuser/virtioblk", "vhostuser/virtioconsole"},
	"internal/dev/md":    {"specfs", "virtq", "vhostuser", "vhostuser/virtioblk"},
	"internal/dev/vnd":   {"specfs", "virtq", "vhostuser", "vhostuser/virtioblk"},
	"internal/dev/null":  {"specfs", "virtq", "vhostuser", "vhostuser/virtioblk"},
	"internal/dev/nbd":   {"specfs", "virtq", "vhostuser", "vhostuser/virtioblk"},
	"internal/dev/pty":   {"specfs", "virtq", "vhostuser", "vhostuser/virtioblk"},
	"internal/dev/stdio": {"specfs", "virtq", "vhostuser", "vhostuser/virtioblk"},
	"internal/dev/fault": {"specfs", "virtq", "vhostuser", "vhostuser/virtioblk"},
}

// syscallNames are what a package outside internal/sys may use of the standard syscall package:
// error numbers, signals, constants and the interface of what has a descriptor, but no calls.
var syscallNames = regexp.MustCompile(`^(Errno|Signal|Conn|E[A-Z0-9]+|SIG[A-Z0-9]+|S_[A-Z]+|O_[A-Z]+)$`)

// loud matches what a public package must not use.
var loud = regexp.MustCompile(`^(fmt\.Print.*|os\.(Exit|Stdout|Stderr)|log(/slog)?\..*)$`)

// file is what the rules need to know of one Go file.
type file struct {
	name    string // path from the repository's root, with slashes
	pkg     string // directory from the repository's root
	test    bool
	imports []string
	uses    []string // what is used of imported packages, such as "os.Exit"
	wide    []int    // lines whose comment reaches beyond maxColumns
}

// root is the repository, seen from this package.
const root = "../.."

// parse reads every Go file below dir, for every operating system and architecture, but not in
// modules of their own, testdata and hidden directories.
func parse(t *testing.T, dir string) []file {
	t.Helper()
	var files []file
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p == dir {
				return nil
			}
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
				return filepath.SkipDir
			}
			if name := d.Name(); name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(p) != ".go" {
			return nil
		}
		f, err := parseFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		f.name = filepath.ToSlash(rel)
		f.pkg = path.Dir(f.name)
		f.test = strings.HasSuffix(f.name, "_test.go")
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func parseFile(name string) (file, error) {
	var f file
	src, err := os.ReadFile(name)
	if err != nil {
		return f, err
	}
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution|parser.ParseComments)
	if err != nil {
		return f, err
	}
	f.wide = wideComments(set, tree, src)
	local := map[string]string{} // the name in the file -> the import path
	for _, spec := range tree.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return f, fmt.Errorf("%s: %w", name, err)
		}
		f.imports = append(f.imports, p)
		if spec.Name != nil {
			local[spec.Name.Name] = p
		} else {
			local[path.Base(p)] = p
		}
	}
	ast.Inspect(tree, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if id, ok := sel.X.(*ast.Ident); ok && local[id.Name] != "" {
			f.uses = append(f.uses, local[id.Name]+"."+sel.Sel.Name)
		}
		return true
	})
	return f, nil
}

// ours returns the packages of this module that f imports, without the module's name.
func (f file) ours() []string {
	var pkgs []string
	for _, p := range f.imports {
		if rest, ok := strings.CutPrefix(p, module+"/"); ok {
			pkgs = append(pkgs, rest)
		}
	}
	return pkgs
}

func allowed(list []string, pkg string) bool {
	return slices.ContainsFunc(list, func(a string) bool {
		if prefix, ok := strings.CutSuffix(a, "/..."); ok {
			return strings.HasPrefix(pkg, prefix+"/")
		}
		return a == pkg
	})
}

// layering reports imports that go against the table of layers, and packages that have no row in
// it.
func layering(files []file) (faults []string) {
	for _, f := range files {
		list, known := layers[f.pkg]
		if !known {
			// What drives QEMU and guests from outside stands above everything and below nothing.
			if !strings.HasPrefix(f.pkg, "guest-tests") && !strings.HasPrefix(f.pkg, "scripts") {
				faults = append(faults, fmt.Sprintf("%s: package %s has no row in the table of layers", f.name, f.pkg))
			}
			continue
		}
		if f.test {
			continue
		}
		for _, p := range f.ours() {
			if !allowed(list, p) {
				faults = append(faults, fmt.Sprintf("%s: %s must not import %s/%s", f.name, f.pkg, module, p))
			}
		}
	}
	return faults
}

// reaching reports packages that reach, through whatever imports, one they must know nothing of.
func reaching(files []file) (faults []string) {
	imports := map[string]map[string]bool{}
	for _, f := range files {
		if f.test {
			continue
		}
		if imports[f.pkg] == nil {
			imports[f.pkg] = map[string]bool{}
		}
		for _, p := range f.ours() {
			imports[f.pkg][p] = true
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(blind)) {
		via := map[string]string{} // package -> who imports it
		for queue := []string{pkg}; len(queue) > 0; queue = queue[1:] {
			for _, p := range slices.Sorted(maps.Keys(imports[queue[0]])) {
				if _, seen := via[p]; !seen {
					via[p] = queue[0]
					queue = append(queue, p)
				}
			}
		}
		for _, p := range blind[pkg] {
			if by, reached := via[p]; reached {
				faults = append(faults, fmt.Sprintf("%s reaches %s (imported by %s), of which it must know nothing", pkg, p, by))
			}
		}
	}
	return faults
}

// systemCalls reports system calls made elsewhere than in the two packages that may make them. What
// runs as the first process of a guest, and what starts virtual machines, uses the standard syscall
// package all the same.
func systemCalls(files []file) (faults []string) {
	for _, f := range files {
		if f.pkg == "internal/sys" || f.pkg == "internal/uring" {
			continue
		}
		if slices.Contains(f.imports, unixPkg) {
			faults = append(faults, fmt.Sprintf("%s: only internal/sys and internal/uring may import %s", f.name, unixPkg))
		}
		for _, u := range f.uses {
			name, ok := strings.CutPrefix(u, "syscall.")
			if ok && !f.test && !strings.HasPrefix(f.pkg, "guest-tests/") && !syscallNames.MatchString(name) {
				faults = append(faults, fmt.Sprintf("%s: syscall.%s: outside internal/sys only syscall's constants may be used", f.name, name))
			}
		}
	}
	return faults
}

// parentage reports programs that are started to end with this one elsewhere than in
// internal/child, which knows that their parent is a thread.
func parentage(files []file) (faults []string) {
	for _, f := range files {
		if f.pkg == "internal/child" || f.pkg == "internal/sys" || f.pkg == "guest-tests/agent" {
			continue
		}
		for _, u := range f.uses {
			if u == "syscall.SysProcAttr" || u == module+"/internal/sys.ChildAttr" {
				faults = append(faults, fmt.Sprintf("%s: uses %s; internal/child starts programs that end with this one", f.name, u))
			}
		}
	}
	return faults
}

// unsafety reports imports of unsafe in files whose names do not say so.
func unsafety(files []file) (faults []string) {
	for _, f := range files {
		if slices.Contains(f.imports, "unsafe") && !f.test && !strings.HasSuffix(f.name, "_unsafe.go") {
			faults = append(faults, fmt.Sprintf("%s: unsafe may be imported only in files named *_unsafe.go", f.name))
		}
	}
	return faults
}

// outspoken reports public packages that log, print or end the process.
func outspoken(files []file) (faults []string) {
	for _, f := range files {
		if f.test || !slices.Contains(public, f.pkg) {
			continue
		}
		for _, u := range f.uses {
			if loud.MatchString(u) {
				faults = append(faults, fmt.Sprintf("%s: uses %s; a public package neither logs, prints nor exits", f.name, u))
			}
		}
	}
	return faults
}

var rules = map[string]func([]file) []string{
	"comments fit on a screen":                       narrow,
	"imports point one way":                          layering,
	"nothing reaches what it must not know":          reaching,
	"only sys and uring make system calls":           systemCalls,
	"unsafe stands only in files named so":           unsafety,
	"only child starts what ends with its parent":    parentage,
	"public packages leave log and exit to the user": outspoken,
}

func TestRepositoryKeepsTheRules(t *testing.T) {
	files := parse(t, root)
	if !slices.ContainsFunc(files, func(f file) bool { return f.pkg == "internal/sys" && slices.Contains(f.imports, unixPkg) }) {
		t.Fatalf("none of the %d files found is internal/sys's: the repository's root is not where it was thought to be", len(files))
	}
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			for _, fault := range rule(files) {
				t.Error(fault)
			}
		})
	}
}

func TestTableNamesOnlyPackagesThatExist(t *testing.T) {
	exists := map[string]bool{}
	for _, f := range parse(t, root) {
		exists[f.pkg] = true
	}
	for _, pkg := range slices.Sorted(maps.Keys(layers)) {
		if !exists[pkg] {
			t.Errorf("the table of layers has a row for %s, which does not exist", pkg)
		}
	}
	for _, pkg := range append(slices.Sorted(maps.Keys(blind)), public...) {
		if _, ok := layers[pkg]; !ok {
			t.Errorf("%s is held to a rule, and has no row in the table of layers", pkg)
		}
	}
}

func TestRulesCatchWhatTheyForbid(t *testing.T) {
	tests := []struct {
		name  string
		rule  func([]file) []string
		files []file
		want  int
	}{
		{"driver imports virtq", layering, []file{{pkg: "internal/dev/md", imports: []string{"vdev/devsw", "vdev/virtq"}}}, 1},
		{"what serves disks imports a driver", layering, []file{{pkg: "internal/serve/blk", imports: []string{"vdev/internal/dev/md"}}}, 0},
		{"a test looks from above", layering, []file{{pkg: "devsw", test: true, imports: []string{"vdev/specfs"}}}, 0},
		{"package without a row", layering, []file{{pkg: "util"}}, 1},
		{"specfs reaches virtq through devsw", reaching, []file{
			{pkg: "specfs", imports: []string{"vdev/devsw"}},
			{pkg: "devsw", imports: []string{"vdev/internal/x"}},
			{pkg: "internal/x", imports: []string{"vdev/virtq"}},
		}, 2},
		{"unix outside sys", systemCalls, []file{{pkg: "virtq", imports: []string{unixPkg}}, {pkg: "internal/uring", imports: []string{unixPkg}}}, 1},
		{"syscall beyond constants", systemCalls, []file{{pkg: "devsw", uses: []string{"syscall.EIO", "syscall.Errno", "syscall.SIGTERM", "syscall.Mmap"}}}, 1},
		{"a parent that is a thread", parentage, []file{
			{pkg: "cmd/vdev", test: true, uses: []string{"syscall.SysProcAttr"}},
			{pkg: "internal/bench", uses: []string{"vdev/internal/sys.ChildAttr"}},
			{pkg: "internal/child", uses: []string{"vdev/internal/sys.ChildAttr"}},
		}, 2},
		{"unsafe", unsafety, []file{{name: "virtq/ring.go", imports: []string{"unsafe"}}, {name: "virtq/ring_unsafe.go", imports: []string{"unsafe"}}}, 1},
		{"wide comment", narrow, []file{{name: "devsw/a.go", pkg: "devsw", wide: []int{3, 5}}}, 2},
		{"public package prints", outspoken, []file{{pkg: "devsw", uses: []string{"fmt.Println", "fmt.Sprintf", "os.Exit", "log/slog.Info"}}, {pkg: "cmd/vdev", uses: []string{"os.Exit"}}}, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.rule(tt.files); len(got) != tt.want {
				t.Errorf("got %d faults, want %d: %q", len(got), tt.want, got)
			}
		})
	}
}
