package serve

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestEndDoesNotWaitForStuckStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		result := make(chan error, 1)
		go func() { result <- await(ctx, served) }()
		time.Sleep(time.Hour)
		select {
		case err := <-result:
			t.Fatalf("vdev ended by itself: %v", err)
		default:
		}
		cancel()
		synctest.Wait()
		before := time.Now()
		if err := <-result; err == nil || time.Since(before) != endPatience {
			t.Errorf("after %v: %v; want an error after %v", time.Since(before), err, endPatience)
		}

		// Storage that comes back in time ends it as usual.
		go func() { result <- await(ctx, served) }()
		time.Sleep(endPatience / 2)
		served <- nil
		if err := <-result; err != nil {
			t.Errorf("await = %v", err)
		}
	})
}
