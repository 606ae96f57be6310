package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"vdev/internal/child"
)

// allocTests are the tests that a transfer allocates nothing on its way, layer by layer and
// all together, by their packages.
var allocTests = map[string][]string{
	"vdev/virtq":                     {"TestARequestDoesNotAllocate"},
	"vdev/vhostuser":                 {"TestRequestsDoNotAllocate"},
	"vdev/specfs":                    {"TestAReadOrWriteThatDoesNotSleepAllocatesNothing", "TestATransferAllocatesNothing"},
	"vdev/devsw":                     {"TestNotifyAllocatesNothing"},
	"vdev/devsw/line":                {"TestATransferAllocatesNothing"},
	"vdev/internal/dev/sock":         {"TestInputAllocatesNothing", "TestOutputAllocatesNothing"},
	"vdev/internal/test/consoletest": {"TestTransfersDoNotAllocate"},
	"vdev/vhostuser/virtioconsole":   {"TestAPortsTransfersAllocateNothing", "TestChainsAllocateNothing"},
	"vdev/vhostuser/virtioblk":       {"TestAFaultDiskWithoutRulesAllocatesNothing", "TestRequestsAllocateNothing"},
	"vdev/internal/dev/fault":        {"TestWithoutRulesATransferAllocatesNothing"},
	"vdev/internal/dev/md":           {"TestATransferAllocatesNothing"},
	"vdev/internal/dev/nbd":          {"TestAWriteThatProvesNothingAllocatesNothing"},
	"vdev/internal/dev/null":         {"TestATransferAllocatesNothing"},
	"vdev/internal/dev/vnd":          {"TestATransferAllocatesNothing"},
	"vdev/internal/reactor":          {"TestTransfersAllocateNothing"},
	"vdev/internal/sys":              {"TestEventfdSignalAndReadDoNotAllocate"},
}

// checkAllocs runs the tests, in the repository that is the current folder.
func checkAllocs(ctx context.Context) (bar, error) {
	packages := slices.Sorted(maps.Keys(allocTests))
	names := slices.Concat(slices.Collect(maps.Values(allocTests))...)
	args := append([]string{"go", "test", "-count=1", "-json", "-run", "^(" + strings.Join(names, "|") + ")$"}, packages...)
	var out bytes.Buffer // which names the tests that fail
	_, err := child.Run(ctx, child.Program{Args: args, Stdout: &out})
	if ctx.Err() != nil {
		return bar{}, context.Cause(ctx)
	}
	return allocBar(out.Bytes(), err)
}

// allocBar judges what go test -json has printed, and how it ended: each test must have passed, and
// none of its parts been skipped.
func allocBar(out []byte, ended error) (bar, error) {
	ends := map[string]string{} // of a package's test
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var e struct{ Action, Package, Test string }
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return bar{}, errors.Join(fmt.Errorf("go test's output: %w", err), ended)
		}
		test, _, part := strings.Cut(e.Test, "/")
		name := e.Package + " " + test
		switch {
		case e.Action == "skip":
			ends[name] = "skipped" // where a part is, the whole passes after it
		case (e.Action == "pass" || e.Action == "fail") && !part && ends[name] == "":
			ends[name] = e.Action + "ed"
		}
	}
	all, wrong := 0, []string(nil)
	for _, pkg := range slices.Sorted(maps.Keys(allocTests)) {
		for _, test := range allocTests[pkg] {
			all++
			name := pkg + " " + test
			switch end := ends[name]; end {
			case "passed":
			case "":
				wrong = append(wrong, name+" did not run")
			default:
				wrong = append(wrong, name+" "+end)
			}
		}
	}
	b := bar{What: "Allocations of a read or a write", Needed: "0, in every layer's test", Measured: fmt.Sprintf("%d tests pass", all), Met: true}
	if passed := all - len(wrong); ended != nil || passed < all {
		if ended != nil {
			line, _, _ := strings.Cut(ended.Error(), "\n")
			wrong = append(wrong, "go test: "+line)
		}
		b.Met, b.Measured = false, fmt.Sprintf("**%d of %d tests pass; %s**", passed, all, strings.Join(wrong, "; "))
	}
	return b, nil
}
