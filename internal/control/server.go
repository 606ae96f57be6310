package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"vdev/internal/sys"
)

const (
	// headerPatience is how long a client may take to say what it wants.
	headerPatience = 10 * time.Second
	// maxBody bounds what a client may send, in bytes.
	maxBody = 1 << 20
	// statusPatience is how long a status waits for event loops that are busy.
	statusPatience = 500 * time.Millisecond
	// endPatience is how long Close waits for answers under way.
	endPatience = time.Second
)

// Listen makes a control socket at path, which its owner alone may use. A socket that a killed process has left is replaced.
func Listen(path string) (net.Listener, error) {
	ln, err := sys.ListenUnix(path, 0o600)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err // it has the path in it already, and what the net package does with it
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ln, nil
}

// Server answers the clients of one control socket.
type Server struct {
	target Target
	http   http.Server
	quit   chan struct{} // closed: those who follow are told the rest, and let go
	once   sync.Once
	served sync.WaitGroup
}

// NewServer makes a Server over target. errors, which may be nil, is told what goes wrong with connections.
func NewServer(target Target, errors *log.Logger) *Server {
	if errors == nil {
		errors = log.New(io.Discard, "", 0)
	}
	s := &Server{target: target, quit: make(chan struct{})}
	s.http = http.Server{
		Handler: s.routes(), ReadHeaderTimeout: headerPatience, IdleTimeout: headerPatience, MaxHeaderBytes: 16 << 10, ErrorLog: errors,
	}
	return s
}

// Start serves the clients of ln, which it closes at the end, in the background until Close.
func (s *Server) Start(ln net.Listener) {
	s.served.Go(func() {
		// It always ends with an error: that it was closed, or that the listener was.
		_ = s.http.Serve(ln)
	})
}

// Close ends the Server: who follows the trace is told what has happened until now, other answers under way have a moment to
// end, and then every connection is closed.
func (s *Server) Close() {
	s.once.Do(func() { close(s.quit) })
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	s.served.Wait()
}

func (s *Server) routes() http.Handler {
	t := s.target
	mux := http.NewServeMux()
	handle(mux, "GET /v1/status", func(ctx context.Context, _ nothing) (Status, error) {
		ctx, cancel := context.WithTimeout(ctx, statusPatience)
		defer cancel()
		return t.Status(ctx), nil
	})
	handle(mux, "GET /v1/trace", func(context.Context, nothing) (Trace, error) {
		about, log := t.Trace()
		about.Start, about.Seconds, about.Events = log.Start(), time.Since(log.Start()).Seconds(), log.Snapshot()
		return about, nil
	})
	mux.HandleFunc("GET /v1/trace/follow", s.follow)
	handle(mux, "GET /v1/faults", func(context.Context, nothing) (Faults, error) { return t.Faults() })
	handle(mux, "POST /v1/faults", func(_ context.Context, r Rules) (IDs, error) {
		if len(r.Rules) == 0 {
			return IDs{}, Wrong("rules: there are none")
		}
		ids, err := t.SetFaults(r.Rules)
		return IDs{ids}, err
	})
	handle(mux, "POST /v1/faults/clear", func(_ context.Context, r IDs) (nothing, error) { return nothing{}, t.ClearFaults(r.IDs) })
	handle(mux, "POST /v1/faults/release", func(_ context.Context, r IDs) (nothing, error) { return nothing{}, t.ReleaseFaults(r.IDs) })
	handle(mux, "POST /v1/faults/crash", t.Crash)
	handle(mux, "POST /v1/revoke", func(ctx context.Context, _ nothing) (nothing, error) { return nothing{}, t.Revoke(ctx) })
	handle(mux, "POST /v1/resize", func(ctx context.Context, _ nothing) (Size, error) { return t.Resize(ctx) })
	handle(mux, "GET /v1/log-level", func(context.Context, nothing) (Level, error) { return Level{t.LogLevel()}, nil })
	handle(mux, "PUT /v1/log-level", func(_ context.Context, l Level) (Level, error) {
		err := t.SetLogLevel(l.Level)
		return Level{t.LogLevel()}, err
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, &Error{http.StatusNotFound, "there is no " + r.Method + " " + r.URL.Path})
	})
	return mux
}

// nothing is a body without content.
type nothing struct{}

// handle has requests that match the pattern answered by f, from the JSON object in their body, which may be missing.
func handle[In, Out any](mux *http.ServeMux, pattern string, f func(context.Context, In) (Out, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var in In
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		d.DisallowUnknownFields()
		if err := d.Decode(&in); err != nil && !errors.Is(err, io.EOF) {
			fail(w, Wrong("body: %v", err))
			return
		}
		out, err := f(r.Context(), in)
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, http.StatusOK, out)
	})
}

func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if e := (*Error)(nil); errors.As(err, &e) {
		status = e.Status
	}
	answer(w, status, Failure{err.Error()})
}

// answer writes v as JSON. A client that has gone does not hear it.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
}

// follow sends the events from since on, one a line, and goes on with those that come, until the client or the Server has
// enough.
func (s *Server) follow(w http.ResponseWriter, r *http.Request) {
	next := uint64(0)
	if since := r.FormValue("since"); since != "" {
		var err error
		if next, err = strconv.ParseUint(since, 10, 64); err != nil {
			fail(w, Wrong("since=%s: must be the number of an event", since))
			return
		}
	}
	_, log := s.target.Trace()
	w.Header().Set("Content-Type", "application/x-ndjson")
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	out := http.NewResponseController(w)
	for ended := false; ; {
		events, more := log.Since(next)
		for _, event := range events {
			if e.Encode(event) != nil {
				return
			}
			next = event.Seq + 1
		}
		if out.Flush() != nil || ended {
			return
		}
		select {
		case <-more:
		case <-s.quit:
			ended = true
		case <-r.Context().Done():
			return
		}
	}
}
