package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// oneWay are the packages whose files use each other in one direction only. Of two files at most
// one uses what the other declares, be it through a third one.
var oneWay = []string{"cmd/vdev", "internal/serve", "internal/serve/blk"}

// goFile is a file of a package, as the rule sees it.
type goFile struct {
	declares []string // names of the package's scope
	uses     []string // names that are not declared in the file
}

func parseGoFile(name string, src any) (goFile, error) {
	tree, err := parser.ParseFile(token.NewFileSet(), name, src, 0)
	if err != nil {
		return goFile{}, err
	}
	var f goFile
	for _, d := range tree.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				f.declares = append(f.declares, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					f.declares = append(f.declares, s.Name.Name)
				case *ast.ValueSpec:
					for _, n := range s.Names {
						f.declares = append(f.declares, n.Name)
					}
				}
			}
		}
	}
	// The key of a composite literal may be a field's name, which the parser does not know.
	keys := map[*ast.Ident]bool{}
	ast.Inspect(tree, func(n ast.Node) bool {
		if kv, ok := n.(*ast.KeyValueExpr); ok {
			if id, ok := kv.Key.(*ast.Ident); ok {
				keys[id] = true
			}
		}
		return true
	})
	for _, id := range tree.Unresolved {
		if !keys[id] {
			f.uses = append(f.uses, id.Name)
		}
	}
	return f, nil
}

// circles reports the files that use, through whatever others, a file that uses them.
func circles(files map[string]goFile) (faults []string) {
	declared := map[string]string{}
	for name, f := range files {
		for _, d := range f.declares {
			if d != "_" && d != "init" {
				declared[d] = name
			}
		}
	}
	next := map[string]map[string]string{} // file -> file that it uses -> by what name
	for name, f := range files {
		next[name] = map[string]string{}
		for _, u := range f.uses {
			if other := declared[u]; other != "" && other != name {
				next[name][other] = u
			}
		}
	}
	for _, from := range slices.Sorted(maps.Keys(files)) {
		seen := map[string]bool{}
		for queue := slices.Sorted(maps.Keys(next[from])); len(queue) > 0; queue = queue[1:] {
			at := queue[0]
			if seen[at] {
				continue
			}
			seen[at] = true
			if by, back := next[at][from]; back {
				faults = append(faults, fmt.Sprintf("%s uses %s of %s, which it is used by", at, by, from))
			}
			queue = append(queue, slices.Sorted(maps.Keys(next[at]))...)
		}
	}
	return faults
}

func TestFilesOfAPackagePointOneWay(t *testing.T) {
	for _, pkg := range oneWay {
		names, err := filepath.Glob(filepath.Join(root, pkg, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]goFile{}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parseGoFile(name, nil)
			if err != nil {
				t.Fatal(err)
			}
			files[filepath.Base(name)] = f
		}
		if len(files) < 2 {
			t.Errorf("%s has %d files", pkg, len(files))
		}
		for _, fault := range circles(files) {
			t.Errorf("%s: %s", pkg, fault)
		}
	}
}

func TestFilesThatGoInCirclesAreFound(t *testing.T) {
	files := map[string]goFile{}
	for name, src := range map[string]string{
		"a.go": "package x\nfunc a() { b() }\ntype T struct{ d int }\n",
		"b.go": "package x\nfunc b() { var c T; _ = c; c2() }\n",
		"c.go": "package x\nfunc c2() { d := 1; _ = T{d: d} }\n",
		"d.go": "package x\nfunc d() { a(); b(); c2() }\n",
	} {
		var err error
		if files[name], err = parseGoFile(name, src); err != nil {
			t.Fatal(err)
		}
	}
	faults := circles(files)
	for _, want := range []string{"b.go uses T of a.go", "a.go uses b of b.go", "c.go uses T of a.go", "b.go uses c2 of c.go"} {
		if !slices.ContainsFunc(faults, func(f string) bool { return strings.HasPrefix(f, want) }) {
			t.Errorf("it is not found that %s: %q", want, faults)
		}
	}
	if slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, "d.go") }) {
		t.Errorf("what only uses others is in a circle: %q", faults)
	}
}
