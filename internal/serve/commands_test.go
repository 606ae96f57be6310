package serve

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestCommandsThatWaitForTheDeviceHaveABound(t *testing.T) {
	var c Commands
	hold := make(chan struct{})
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for range maxCommands {
		if err := c.Wait(over, func() error { <-hold; return nil }); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if err := c.Wait(t.Context(), func() error { return nil }); err == nil || !strings.Contains(err.Error(), "8 commands are in progress") {
		t.Errorf("one command more: %v", err)
	}
	close(hold)
	for c.waiting.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := c.Wait(t.Context(), func() error { return nil }); err != nil {
		t.Error(err)
	}
}
