package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// maxColumns is how wide a comment may be, a tab being 4 columns.
const maxColumns = 100

// directive matches comments that are for tools, and may be of any length.
var directive = regexp.MustCompile(`^//[a-z]+:\S`)

// wideComments gives the lines on which a comment reaches beyond maxColumns.
func wideComments(set *token.FileSet, tree *ast.File, src []byte) (lines []int) {
	text := strings.Split(string(src), "\n")
	for _, g := range tree.Comments {
		for _, c := range g.List {
			line := set.PositionFor(c.Pos(), false).Line
			if strings.HasPrefix(c.Text, "//") && !directive.MatchString(c.Text) && columns(text[line-1]) > maxColumns {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// columns is the width of a line.
func columns(line string) (n int) {
	for _, r := range line {
		if n++; r == '\t' {
			n = (n + 3) / 4 * 4
		}
	}
	return n
}

// narrow reports comments that are too wide.
func narrow(files []file) (faults []string) {
	for _, f := range files {
		for _, line := range f.wide {
			faults = append(faults, fmt.Sprintf("%s:%d: the comment is wider than %d columns", f.name, line, maxColumns))
		}
	}
	return faults
}

func TestTheWidthOfACommentIsThatOfItsLine(t *testing.T) {
	src := "package x\n\n" +
		"// " + strings.Repeat("a", 97) + "\n" + // 100 columns
		"// " + strings.Repeat("ü", 98) + "\n" + // 101
		"//go:generate " + strings.Repeat("a", 100) + "\n" +
		"\tvar a = 1 // " + strings.Repeat("a", 84) + "\n" + // 4 + 97
		"var b = `\n// " + strings.Repeat("a", 100) + "`\n"
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, "x.go", src, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := wideComments(set, tree, []byte(src)), []int{4, 6}; !slices.Equal(got, want) {
		t.Errorf("the lines %v are too wide, want %v", got, want)
	}
}
