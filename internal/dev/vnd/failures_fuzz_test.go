package vnd

import (
	"testing"
	"time"

	"vdev/devsw"
)

// FuzzFailure reads any file as a record of a flush that has failed, which it is whatever it says:
// no text makes it none. A record that is ours has its own number.
func FuzzFailure(f *testing.F) {
	for _, text := range []string{
		"", "{}", "null", "[]", "7", `{"errno":28}`, `{"errno":0}`, `{"errno":-5}`, `{"errno":4096}`, `{"errno":"5"}`,
		`{"errno":5,"errno":28}`, `{"errno":1e1}`, `{"errno":28} {}`, `{"ERRNO":28,"image":"\u0000"}`, `{"errno":28`,
	} {
		f.Add([]byte(text), 28, "/a")
	}
	f.Fuzz(func(t *testing.T, text []byte, errno int, image string) {
		if e := parseFailure(text); e < 1 || e > 4095 {
			t.Fatalf("%q is read as %d", text, int(e))
		}
		want := devsw.Errno(errno)
		if errno < 1 || errno > 4095 {
			want = devsw.EIO
		}
		written, err := failure{Errno: errno, Error: want.Error(), Image: image, Time: time.Unix(1, 0), PID: 1}.text()
		if err != nil {
			t.Fatal(err)
		}
		if e := parseFailure(written); e != want {
			t.Fatalf("%s is read as %v, want %v", written, e, want)
		}
	})
}
