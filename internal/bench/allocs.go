package main

import (
	"context"
	"fmt"
	"strings"
)

// allocTests are the tests that a read or a write allocates nothing on its way, layer by layer and all together.
const allocTests = "Allocates?Nothing|NotAllocate"

// checkAllocs runs the tests, in the repository that is the current folder.
func checkAllocs(ctx context.Context) (bar, error) {
	cmd := pinned(ctx, -1, "go", []string{"test", "-count=1", "-v", "-run", allocTests, "./..."})
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return bar{}, context.Cause(ctx)
	}
	return allocBar(string(out), err), nil
}

// allocBar judges what go test -v has printed, and how it ended.
func allocBar(out string, err error) bar {
	passed, failed := strings.Count(out, "\n--- PASS: "), strings.Count(out, "\n--- FAIL: ")
	b := bar{What: "Allocations of a read or a write", Needed: "0, in every layer's test", Met: err == nil && passed > 0,
		Measured: fmt.Sprintf("%d tests pass", passed)}
	if !b.Met {
		b.Measured = fmt.Sprintf("**%d tests pass, %d fail: %v**", passed, failed, err)
	}
	return b
}
