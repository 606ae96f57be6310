package sys

import (
	"slices"
	"testing"
)

// TestAListOfThreadsIsWholeThoughTheKernelEndsOneEarly. Threads are counted between each two lists.
func TestAListOfThreadsIsWholeThoughTheKernelEndsOneEarly(t *testing.T) {
	for name, c := range map[string]struct {
		lists  [][]int
		counts []int
		want   []int
	}{
		"nothing happens":                        {[][]int{{1, 2, 3}, {1, 2, 3}}, []int{3}, []int{1, 2, 3}},
		"one is started after it":                {[][]int{{1, 2}, {1, 2, 3}}, []int{2}, []int{1, 2}},
		"one has ended, 3 is not listed":         {[][]int{{1}, {1, 3}, {1, 3}}, []int{2, 2}, []int{1, 3}},
		"that twice":                             {[][]int{{1}, {1}, {1, 3}, {1, 3}}, []int{2, 2, 2}, []int{1, 3}},
		"2 has ended after it, 3 is not listed":  {[][]int{{1, 2}, {1, 3}, {1, 3}}, []int{2, 2}, []int{1, 3}},
		"the process has ended":                  {[][]int{nil, nil}, []int{0}, nil},
		"the process has ended meanwhile":        {[][]int{{1, 2}, nil, nil}, []int{0, 0}, nil},
		"one has been started before the count":  {[][]int{{1, 2}, {1, 2, 3}, {1, 2, 3}}, []int{3, 3}, []int{1, 2, 3}},
		"one has ended, and another was started": {[][]int{{1, 2}, {1, 3}, {1, 3}}, []int{2, 2}, []int{1, 3}},
	} {
		list := func() (tids []int) {
			tids, c.lists = c.lists[0], c.lists[1:]
			return tids
		}
		count := func() (n int) {
			n, c.counts = c.counts[0], c.counts[1:]
			return n
		}
		if got := whole(list, count); !slices.Equal(got, c.want) || len(c.lists) > 0 {
			t.Errorf("%s: %v, want %v; %d lists are left", name, got, c.want, len(c.lists))
		}
	}
}
