package terminal

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if role := os.Getenv("TERMINAL_TEST"); role != "" {
		roles[role]()
		return
	}
	goleak.VerifyTestMain(m)
}
