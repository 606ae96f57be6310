package control_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"vdev/internal/control"
)

// calm is a fake that does all it is asked for.
type calm struct{ *line }

func (c calm) Revoke(context.Context) error { return c.note("revoke") }

func (c calm) Model() (any, error) { return c, nil }

// Attach is asked for by a client that does not ask for an upgrade: nothing comes of it.
func (c calm) Attach(string, bool) (func(*control.Terminal), error) { return nil, nil }

func (c calm) SetLogLevel(level string) error { return c.note("log-level %q", level) }

// named is one of several.
type named struct {
	calm
	name string
}

func (n named) Name() string { return n.name }

// endless is a body that repeats itself.
type endless struct {
	text []byte
	at   int
	read int64
}

func (e *endless) Read(p []byte) (n int, err error) {
	n = copy(p, e.text[e.at:])
	n += copy(p[n:], e.text[:e.at])
	for period := n; n < len(p); {
		n += copy(p[n:], p[:n-n%period])
	}
	e.at = (e.at + n) % len(e.text)
	e.read += int64(n)
	return n, nil
}

// answered is a ResponseWriter that keeps the answer.
type answered struct {
	status int
	header http.Header
	body   bytes.Buffer
}

func (a *answered) Header() http.Header { return a.header }

func (a *answered) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answered) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

func (a *answered) Flush() { a.WriteHeader(http.StatusOK) }

// FuzzRequests asks for anything in any way. It is answered in JSON: with 200, after the target was
// asked at most once, or with 4xx and a reason, after it was not asked to do anything. No more of a
// body is read than is allowed.
func FuzzRequests(f *testing.F) {
	for _, s := range []struct{ method, target, body string }{
		{"GET", "/v1/status", ""},
		{"GET", "/v1/devices", ""},
		{"GET", "/v1/devices/a/status", ""},
		{"GET", "/v1/devices/c/status", ""},
		{"GET", "/v1/devices/%2e%2e/status", ""},
		{"GET", "/v1//status", ""},
		{"GET", "/v1/trace", "{}"},
		{"GET", "/v1/trace/follow?since=0", ""},
		{"GET", "/v1/devices/b/trace/follow?since=-1", ""},
		{"GET", "/v1/faults", ""},
		{"POST", "/v1/faults", `{"rules":["hang:write","error:read:errno=ENOSPC"]}`},
		{"POST", "/v1/faults", `{"rules":[]}`},
		{"POST", "/v1/faults", `{"rules":[1]}`},
		{"POST", "/v1/faults/clear", `{"ids":[1,2]}`},
		{"POST", "/v1/devices/a/faults/release", ""},
		{"POST", "/v1/faults/crash", `{"keep":0.5,"seed":1}`},
		{"GET", "/v1/ports", ""},
		{"POST", "/v1/ports", `{"port":"driver=null"}`},
		{"POST", "/v1/devices/a/ports/remove", `{"port":"x"}`},
		{"GET", "/v1/ports/attach?port=x&watch=true", ""},
		{"POST", "/v1/revoke", ""},
		{"POST", "/v1/resize", "{"},
		{"GET", "/v1/log-level", ""},
		{"PUT", "/v1/log-level", `{"level":"debug"}`},
		{"PUT", "/v1/log-level", `{"level":"debug","more":1}`},
		{"PUT", "/v1/log-level", `{"level":"debug"} {"level":"info"}`},
		{"DELETE", "/v1/status", ""},
		{"POST", "/", "\x00"},
		{"HEAD", "/v1/status", ""},
	} {
		for _, several := range []bool{false, true} {
			f.Add(several, false, s.method, s.target, []byte(s.body))
		}
		f.Add(false, true, s.method, s.target, []byte(s.body+" "))
	}
	target := calm{newLine()}
	one := control.NewServer(target, []control.Target{target}, nil)
	two := control.NewServer(target, []control.Target{named{target, "a"}, named{target, "b"}}, nil)
	f.Cleanup(one.Close)
	f.Cleanup(two.Close)
	over, cancel := context.WithCancel(context.Background())
	cancel()
	f.Fuzz(func(t *testing.T, several, forEver bool, method, address string, body []byte) {
		u, err := url.ParseRequestURI(address)
		if err != nil || u.Path == "" || u.EscapedPath()[0] != '/' {
			t.Skip("no request of HTTP")
		}
		// A client that hangs up at once: an answer that goes on ends.
		r, err := http.NewRequestWithContext(over, method, "http://vdev", bytes.NewReader(body))
		if err != nil {
			t.Skip(err)
		}
		r.URL, r.RequestURI = u, address
		rest := &endless{text: body}
		if forEver && len(body) > 0 {
			r.Body, r.ContentLength = io.NopCloser(rest), -1
		}
		target.calls = nil
		server := one
		if several {
			server = two
		}
		w := &answered{header: make(http.Header)}
		server.Handler().ServeHTTP(w, r)

		if rest.read > 2*control.MaxBody {
			t.Errorf("%d bytes of the body were read", rest.read)
		}
		if w.body.Len() > 64<<10+6*len(address)+6*len(body) {
			t.Errorf("an answer of %d bytes", w.body.Len())
		}
		switch {
		case w.status == http.StatusOK:
			if len(target.calls) > 1 {
				t.Errorf("the target was asked for %q", target.calls)
			}
			said := bytes.Trim(body, " \t\r\n")
			switch {
			case len(body) == 0 || strings.HasSuffix(u.Path, "/follow"):
			case forEver:
				t.Error("a body without an end is taken")
			case len(said) > 0 && !json.Valid(said):
				t.Errorf("%q is taken, which is not one JSON value", body)
			}
			for d := json.NewDecoder(&w.body); ; {
				var v map[string]any
				if err := d.Decode(&v); err == io.EOF {
					break
				} else if err != nil {
					t.Fatalf("the answer is no JSON: %v", err)
				}
			}
		case w.status == http.StatusMovedPermanently || w.status == http.StatusTemporaryRedirect || w.status == http.StatusPermanentRedirect:
			if clean := path.Clean(u.Path); clean == u.Path && len(target.calls) == 0 {
				t.Errorf("%s is sent elsewhere: %v", u.Path, w.header)
			}
		case w.status >= 400 && w.status < 500:
			var failure control.Failure
			if err := json.Unmarshal(w.body.Bytes(), &failure); err != nil || failure.Message == "" {
				t.Errorf("%s %s: %d says %q, %v", method, address, w.status, w.body.Bytes(), err)
			}
			if len(target.calls) > 0 {
				t.Errorf("%d, and the target was asked for %q", w.status, target.calls)
			}
		default:
			t.Errorf("%s %s: %d", method, address, w.status)
		}
	})
}

// FuzzFrames has a client that is attached send anything. It is given to the port in order, never
// more than may be unread, until the first frame that must not be; and then the client is told.
func FuzzFrames(f *testing.F) {
	for _, s := range []string{
		"", "d\x00\x03abc", "s\x00\x04\x00\x28\x00\x64d\x00\x01x", "d\x10\x00" + strings.Repeat("x", 4096) + "d\x00\x01y", "d\x00\x05ab", "s\x00\x03123",
		"t\x00\x02\x00\x01", "e\x00\x00", "d\xff\xff", "d\x00\x00d\x00\x00",
	} {
		f.Add([]byte(s), uint16(0))
		f.Add([]byte(s), uint16(1))
	}
	f.Fuzz(func(t *testing.T, sent []byte, takes uint16) {
		ours, theirs := net.Pipe()
		term := control.NewTerminal(ours)
		told := make(chan []byte)
		go func() {
			b, _ := io.ReadAll(theirs)
			told <- b
		}()
		go func() {
			_, _ = theirs.Write(sent)
			// What is left of a frame does not come.
			_ = ours.SetReadDeadline(time.Unix(1, 0))
		}()
		var typed, want []byte
		unread, sizes := 0, 0
		term.Serve(func(p []byte) {
			typed = append(typed, p...)
			if unread += len(p); unread > control.Unread {
				t.Fatalf("%d bytes are unread", unread)
			}
			if n := min(int(takes), unread); n > 0 {
				unread -= n
				term.Taken(n)
			}
		}, func(uint16, uint16) { sizes++ })
		term.Bye()
		theirs.Close()
		<-told
		for rest := sent; len(rest) >= 3; {
			n := int(rest[1])<<8 | int(rest[2])
			if len(rest) < 3+n || rest[0] != 'd' && rest[0] != 's' {
				break
			}
			if rest[0] == 'd' {
				want = append(want, rest[3:3+n]...)
			}
			rest = rest[3+n:]
		}
		if !bytes.HasPrefix(want, typed) || sizes > len(sent)/7 {
			t.Errorf("%q is given to the port, and %d sizes, of %q", typed, sizes, sent)
		}
	})
}
