package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// architecture is the page that says which function does what.
const architecture = "docs/architecture.md"

var (
	// inCode is what stands between backquotes.
	inCode = regexp.MustCompile("`([^`\n]+)`")
	// place is how the pages name a declaration: "vhostuser/ring.go: session.start".
	place = regexp.MustCompile(`^([\w./-]+\.go): ([\w.]+)$`)
	// link is a link of Markdown.
	link = regexp.MustCompile(`\]\(([^)#\s]+)[^)]*\)`)
)

// declared gives what a Go file declares: functions, types, and with their type's name before them
// methods, fields and the methods of interfaces.
func declared(name string) (map[string]bool, error) {
	tree, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, d := range tree.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				names[d.Name.Name] = true
				continue
			}
			t := d.Recv.List[0].Type
			if p, ok := t.(*ast.StarExpr); ok {
				t = p.X
			}
			if id, ok := t.(*ast.Ident); ok {
				names[id.Name+"."+d.Name.Name] = true
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				t, ok := s.(*ast.TypeSpec)
				if !ok {
					continue
				}
				names[t.Name.Name] = true
				var list *ast.FieldList
				switch t := t.Type.(type) {
				case *ast.StructType:
					list = t.Fields
				case *ast.InterfaceType:
					list = t.Methods
				default:
					continue
				}
				for _, f := range list.List {
					for _, id := range f.Names {
						names[t.Name.Name+"."+id.Name] = true
					}
				}
			}
		}
	}
	return names, nil
}

// lost reports what a page of the documentation names and what is not there: a declaration, or a
// file that it links to. n is how many declarations it names.
func lost(page, text string) (faults []string, n int) {
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		if strings.Contains(m[1], "://") {
			continue
		}
		if _, err := os.Stat(filepath.Join(root, filepath.Dir(page), m[1])); err != nil {
			faults = append(faults, fmt.Sprintf("%s: links to %s, which is not there", page, m[1]))
		}
	}
	for _, m := range inCode.FindAllStringSubmatch(text, -1) {
		at := place.FindStringSubmatch(m[1])
		if at == nil {
			continue
		}
		n++
		names, err := declared(filepath.Join(root, at[1]))
		switch {
		case err != nil:
			faults = append(faults, fmt.Sprintf("%s: %s: %v", page, m[1], err))
		case !names[at[2]]:
			faults = append(faults, fmt.Sprintf("%s: %s declares no %s", page, at[1], at[2]))
		}
	}
	return faults, n
}

func TestWhatTheDocumentationNamesIsThere(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(pages, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		page, err := filepath.Rel(root, name)
		if err != nil {
			t.Fatal(err)
		}
		faults, n := lost(filepath.ToSlash(page), string(text))
		for _, fault := range faults {
			t.Error(fault)
		}
		if page == architecture && n < 40 {
			t.Errorf("%s names %d declarations: are they still found?", page, n)
		}
	}
}

func TestANameThatIsNotThereIsFound(t *testing.T) {
	for text, want := range map[string]int{
		"`internal/lint/docs_test.go: lost`":          0,
		"`internal/lint/docs_test.go: found`":         1,
		"`internal/lint/imports_test.go: file.pkg`":   0,
		"`internal/lint/imports_test.go: file.ours`":  0,
		"`internal/lint/imports_test.go: file.none`":  1,
		"`internal/lint/none.go: lost`":               1,
		"`go test: lost`":                             0,
		"[limits](limits.md), [code](../internal)":    0,
		"[limits](docs/limits.md), [x](https://x.yz)": 1,
	} {
		if faults, _ := lost("docs/x.md", text); len(faults) != want {
			t.Errorf("%s: %q, want %d faults", text, faults, want)
		}
	}
}
