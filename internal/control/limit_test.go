package control_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vdev/internal/control"
	"vdev/internal/trace"
)

// serveWith is serve with so much patience.
func serveWith(t *testing.T, f *fake, patience time.Duration) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ctl")
	ln, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(f, []control.Target{f}, nil)
	s.SetPatience(patience)
	s.Start(ln)
	t.Cleanup(sync.OnceFunc(s.Close))
	return path
}

// say connects to path, sends text, and returns the connection.
func say(t *testing.T, path, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAClientThatDoesNotFinishIsLetGo(t *testing.T) {
	f := newFake()
	close(f.hold)
	path := serveWith(t, f, 200*time.Millisecond)
	for name, text := range map[string]string{
		"no header":                 "",
		"half a header":             "GET /v1/status HTTP/1.1\r\nHost: v",
		"no body":                   "POST /v1/faults HTTP/1.1\r\nHost: vdev\r\nContent-Length: 20\r\n\r\n",
		"half a body":               "POST /v1/revoke HTTP/1.1\r\nHost: vdev\r\nContent-Length: 20\r\n\r\n{",
		"no body of a GET":          "GET /v1/status HTTP/1.1\r\nHost: vdev\r\nContent-Length: 20\r\n\r\n",
		"no body of what is not":    "POST /v1/nothing HTTP/1.1\r\nHost: vdev\r\nContent-Length: 20\r\n\r\n",
		"no body, and follows":      "GET /v1/trace/follow HTTP/1.1\r\nHost: vdev\r\nContent-Length: 20\r\n\r\n",
		"half a body of chunks":     "POST /v1/faults HTTP/1.1\r\nHost: vdev\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"ru",
		"nothing more on keepalive": "GET /v1/log-level HTTP/1.1\r\nHost: vdev\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			answer, err := io.ReadAll(say(t, path, text))
			if err != nil {
				t.Errorf("the connection goes on: %v", err)
			}
			if strings.Contains(name, "body") && !strings.Contains(string(answer), "has not come within") {
				t.Errorf("it was answered %q, want the cause", answer)
			}
		})
	}
}

func TestMoreThanOneObjectIsRefused(t *testing.T) {
	f := newFake()
	path, _ := serve(t, f)
	for _, body := range []string{`{"ids":[1]}{"ids":[2]}`, `{"ids":[1]} x`, `{} {}`, `{}]`} {
		c := say(t, path, fmt.Sprintf("POST /v1/faults/clear HTTP/1.1\r\nHost: vdev\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if answer.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: status %d, want %d", body, answer.StatusCode, http.StatusBadRequest)
		}
		answer.Body.Close()
	}
	if len(f.calls) != 0 {
		t.Errorf("the target was asked %q", f.calls)
	}
	if err := control.NewClient(path).ClearFaults(t.Context(), []int{1}); err != nil {
		t.Error(err)
	}
}

func TestWhoDoesNotReadTheTraceIsLetGo(t *testing.T) {
	f := newFake()
	path := serveWith(t, f, 200*time.Millisecond)
	c := say(t, path, "GET /v1/trace/follow HTTP/1.1\r\nHost: vdev\r\n\r\n")
	// More than the socket holds.
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			f.life.Add(trace.Event{Kind: "stop", Queue: 0, Note: strings.Repeat("x", 1<<14)})
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	defer func() {
		close(done)
		<-ended
	}()
	// Nothing is read here: what is written fails when the server has hung up.
	var err error
	for begun := time.Now(); err == nil && time.Since(begun) < patience; time.Sleep(10 * time.Millisecond) {
		_, err = c.Write([]byte("x"))
	}
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection goes on: %v", err)
	}
}

func TestClientsHaveABound(t *testing.T) {
	f := newFake()
	path := serveWith(t, f, 300*time.Millisecond)
	f.life.Add(trace.Event{Kind: "connect", Queue: trace.WholeDevice})
	follow := func() (net.Conn, int) {
		c := say(t, path, "GET /v1/trace/follow HTTP/1.1\r\nHost: vdev\r\n\r\n")
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c, answer.StatusCode
	}
	var one net.Conn
	for range control.MaxStaying {
		c, status := follow()
		if status != http.StatusOK {
			t.Fatalf("one who follows is answered %d", status)
		}
		one = c
	}
	if c, status := follow(); status != http.StatusServiceUnavailable {
		t.Errorf("one too many who follows is answered %d", status)
	} else {
		c.Close()
	}
	one.Close()
	// Those who say nothing keep others away only for a while.
	for range control.MaxConns {
		say(t, path, "")
	}
	if _, err := control.NewClient(path).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestAClientBeyondTheBoundWaitsUntilOneHasGone.
func TestAClientBeyondTheBoundWaitsUntilOneHasGone(t *testing.T) {
	path := serveWith(t, newFake(), time.Minute)
	var silent []net.Conn
	for range control.MaxConns {
		silent = append(silent, say(t, path, "GET /v1/log-level HTTP/1.1\r\n"))
	}
	c := say(t, path, "GET /v1/log-level HTTP/1.1\r\nHost: vdev\r\nConnection: close\r\n\r\n")
	c.SetDeadline(time.Now().Add(100 * time.Millisecond)) // time in which a wrong answer would come
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one too many is answered: %d bytes, %v", n, err)
	}
	c.SetDeadline(time.Now().Add(patience))
	silent[0].Close()
	if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("when one has gone: %v, %v", answer, err)
	}
}
