package qtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/internal/bench/load"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// qemu returns a QEMU 11.1, and skips the test where there is none.
func qemu(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	path := filepath.Join(cache, "vdev", "qemu-11.1", "bin", "qemu-system-x86_64")
	if _, err := os.Stat(path); err != nil {
		t.Skip(err)
	}
	return path
}

func TestQEMUsOwnPortIsLoaded(t *testing.T) {
	q, err := Start(t.Context(), Config{QEMU: qemu(t), Dir: t.TempDir(), Log: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := q.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	host, err := load.OpenHost(q.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	target := load.Target{Name: "QEMU", Port: "data", Host: host, Via: &load.Via{Connect: q.Connect, Memory: q.Memory, PID: q.PID()}}
	for _, pattern := range load.ConsolePatterns {
		j := load.Job{Pattern: pattern, BlockSize: 4096, Depth: 64, Warmup: 20 * time.Millisecond, Length: 200 * time.Millisecond, Seed: 1}
		for ; ; j.Length *= 4 {
			results, err := load.Compare(t.Context(), []load.Target{target}, j, 1, nil)
			if err != nil && strings.Contains(err.Error(), "a longer length is needed") && j.Length < time.Minute {
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", pattern, err)
			}
			r := results[0][0]
			if r.PID != q.PID() || !r.Backend.Known || r.Bytes == 0 {
				t.Errorf("%s: %+v", pattern, r)
			}
			t.Logf("%s: %.0f MB/s, %.0f us of CPU for a MiB, waited %.2f, p50 %v", pattern, r.BytesPerSecond()/1e6,
				float64(r.Backend.CPU.Microseconds())/(float64(r.Bytes)/(1<<20)), r.Waited, r.Percentile(50))
			break
		}
	}
}
