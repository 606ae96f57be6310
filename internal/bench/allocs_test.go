package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// goTest is what go test -json says where each test of allocTests passes, but that what is named
// says something else, or nothing.
func goTest(but map[string]string) []byte {
	var out strings.Builder
	for pkg, tests := range allocTests {
		for _, test := range tests {
			say := func(action, test string) {
				if action != "" {
					fmt.Fprintf(&out, `{"Action":%q,"Package":%q,"Test":%q}`+"\n", action, pkg, test)
				}
			}
			action, ok := but[test]
			if !ok {
				action = "pass"
			}
			say("run", test)
			say(cmp.Or(but[test+"/part"], "pass"), test+"/part")
			say(action, test)
		}
		fmt.Fprintf(&out, `{"Action":"pass","Package":%q}`+"\n", pkg)
	}
	return []byte(out.String())
}

func TestAllocationsAreJudgedByTheirTests(t *testing.T) {
	for _, tt := range []struct {
		out  []byte
		err  error
		met  bool
		want string
	}{
		{goTest(nil), nil, true, "20 tests pass"},
		{goTest(nil), errors.New("exit status 1"), false, "**20 of 20 tests pass; go test: exit status 1**"},
		{goTest(map[string]string{"TestTransfersAllocateNothing": "fail"}), nil, false,
			"**19 of 20 tests pass; vdev/internal/reactor TestTransfersAllocateNothing failed**"},
		{goTest(map[string]string{"TestRequestsAllocateNothing": "skip", "TestRequestsDoNotAllocate": ""}), nil, false,
			"**18 of 20 tests pass; vdev/vhostuser TestRequestsDoNotAllocate did not run; vdev/vhostuser/virtioblk TestRequestsAllocateNothing skipped**"},
		{goTest(map[string]string{"TestARequestDoesNotAllocate/part": "skip"}), nil, false, "**19 of 20 tests pass; vdev/virtq TestARequestDoesNotAllocate skipped**"},
	} {
		b, err := allocBar(tt.out, tt.err)
		if err != nil || b.Met != tt.met || b.Measured != tt.want {
			t.Errorf("%+v, %v; want %q", b, err, tt.want)
		}
	}
	if _, err := allocBar([]byte("FAIL\n"), nil); err == nil {
		t.Error("what is not JSON is taken")
	}
}

func TestEachAllocationTestIsInTheList(t *testing.T) {
	found := map[string][]string{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w*(?:Allocates?Nothing|NotAllocate)\w*)\(`).FindAllSubmatch(text, -1) {
			pkg := "vdev/" + filepath.ToSlash(dir)
			found[pkg] = append(found[pkg], string(m[1]))
			slices.Sort(found[pkg])
		}
		return err
	})
	if err != nil || !maps.EqualFunc(found, allocTests, slices.Equal) {
		t.Errorf("there are %v, %v; the list has %v", found, err, allocTests)
	}
}
