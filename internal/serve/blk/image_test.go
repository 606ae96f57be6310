package blk

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vdev/internal/dev/vnd"
)

func TestAnImageIsWaitedForWhileItsHolderEnds(t *testing.T) {
	other := errors.New("no such file")
	alive, dead, nobody := &vnd.LockError{PID: 2}, &vnd.LockError{PID: 3}, &vnd.LockError{}
	for name, tt := range map[string]struct {
		answers []error // of check, one after the other; the last one again and again
		want    error
		waits   time.Duration
	}{
		"free":                          {[]error{nil}, nil, 0},
		"broken":                        {[]error{other}, other, 0},
		"nobody's, then free":           {[]error{nobody, nobody, nil}, nil, 2 * lockPause},
		"nobody's":                      {[]error{nobody}, nobody, vnd.DefaultLockWait},
		"a dead one's":                  {[]error{dead}, dead, vnd.DefaultLockWait},
		"a dead one's, then broken":     {[]error{dead, other}, other, lockPause},
		"somebody's":                    {[]error{alive}, alive, aliveWait},
		"somebody's, who was killed":    {[]error{alive, dead, nobody, nil}, nil, 3 * lockPause},
		"nobody's, then somebody new's": {[]error{nobody, alive}, alive, aliveWait},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				check := func() error {
					calls++
					return tt.answers[min(calls, len(tt.answers))-1]
				}
				begin := time.Now()
				err := checkImage(t.Context(), check, func(pid int) bool { return pid == 3 }, nil)
				if err != tt.want || time.Since(begin) != tt.waits {
					t.Errorf("%v after %v, want %v after %v", err, time.Since(begin), tt.want, tt.waits)
				}
				// With --incoming nobody is waited for, and what is broken is broken.
				calls = 0
				begin = time.Now()
				var told error
				err = checkImage(t.Context(), check, nil, func(err error) { told = err })
				var lock *vnd.LockError
				switch first := tt.answers[0]; {
				case errors.As(first, &lock) && (err != nil || told != first), !errors.As(first, &lock) && (err != first || told != nil), time.Since(begin) != 0:
					t.Errorf("incoming: %v, and told %v, after %v", err, told, time.Since(begin))
				}
			})
		})
	}
	t.Run("a look that takes long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			err := checkImage(t.Context(), func() error {
				time.Sleep(time.Second)
				return nobody
			}, ending, nil)
			if took := time.Since(begin); err != nobody || took > vnd.DefaultLockWait+2*time.Second {
				t.Errorf("%v after %v", err, took)
			}
		})
	})
	t.Run("the end", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := checkImage(ctx, func() error { return nobody }, ending, nil); err != nobody {
			t.Errorf("%v, want that it is in use", err)
		}
	})
}

func TestAProcessThatHasEndedIsEnding(t *testing.T) {
	if ending(os.Getpid()) {
		t.Error("this one is ending")
	}
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for !ending(cmd.Process.Pid) { // it stays a zombie until it is waited for
		time.Sleep(time.Millisecond)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if !ending(cmd.Process.Pid) {
		t.Error("one that is no more is not ending")
	}
	for line, want := range map[string]bool{
		"7 (a) Z) R 1 1 1 0 -1 4194304 0": false,
		"7 (vdev) D 1 1 1 0 -1 4194308 0": true,
		"7 (vdev) Z 1 1 1 0 -1 0 0":       true,
		"7 (vdev)":                        false,
		"":                                false,
	} {
		if got := endingStat([]byte(line)); got != want {
			t.Errorf("%s: %v, want %v", strings.TrimSpace(line), got, want)
		}
	}
}
