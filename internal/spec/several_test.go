package spec

import (
	"strings"
	"testing"
)

func TestADeviceThatIsRefusedIsToldWhatWouldBeRight(t *testing.T) {
	for text, want := range map[string]string{
		"read-only=maybe": `read-only = "maybe": must be true or false`,
		"cancel-after=5":  `cancel-after = "5": must be a time, such as 10s`,
		"num-queues=0":    `num-queues = "0": must be a whole number from 1 to 256`,
		"migratable=yes":  `migratable = "yes": must be on or off`,
		"fd=3,fd=4":       "fd is given twice",
		"nonsense":        `"nonsense" is not key=value`,
		"nonsense=1":      `there is no key "nonsense"; it is the flags of 'vdev blk' that describe a disk, and name`,
		"name=a b":        `name "a b": must be of letters, digits, ., _ and -, and begin with a letter or a digit`,
	} {
		if d, err := parseDevice(text); err == nil || err.Error() != want {
			t.Errorf("%s: %+v, %v; want the error %s", text, d, err, want)
		}
	}
	_, err := parseDevice("cancel-after=" + strings.Repeat("\x8a", 100))
	if err == nil || len(err.Error()) > 500 {
		t.Errorf("%d bytes of an error: %v", len(err.Error()), err)
	}
}
