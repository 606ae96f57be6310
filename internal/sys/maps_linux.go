package sys

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// InSharedMapping tells whether addr lies in memory of this process that is mapped shared, as a guest's is and Go's own is
// not. It reads /proc/self/maps, and is for the rare case that somebody has to know; where that cannot be read it answers
// false.
func InSharedMapping(addr uintptr) bool {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// address range, permissions (rwxs or rwxp), ...
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		low, high, ok := strings.Cut(fields[0], "-")
		start, err1 := strconv.ParseUint(low, 16, 64)
		end, err2 := strconv.ParseUint(high, 16, 64)
		if !ok || err1 != nil || err2 != nil {
			continue
		}
		if uint64(addr) >= start && uint64(addr) < end {
			return strings.HasSuffix(fields[1], "s")
		}
	}
	return false
}
