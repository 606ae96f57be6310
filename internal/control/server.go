package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"vdev/internal/sys"
)

const (
	// clientPatience is how long a client may take to say what it wants, header and body, and then
	// for each piece of the answer.
	clientPatience = 10 * time.Second
	// maxBody bounds what a client may send, in bytes.
	maxBody = 1 << 20
	// maxConns is how many clients are connected at once. Others wait until one has gone.
	maxConns = 64
	// maxStaying is how many of them may follow the trace or be attached to a port: all others go
	// of themselves, or are made to.
	maxStaying = maxConns / 2
	// statusPatience is how long a status waits for event loops that are busy.
	statusPatience = 500 * time.Millisecond
	// endPatience is how long Close waits for answers under way.
	endPatience = time.Second
)

// Listen makes a control socket at path, which its owner alone may use. A socket that a killed
// process has left is replaced.
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

// Server answers the clients of one control socket. Make one with NewServer.
type Server struct {
	all       []Target // does not change
	process   Process
	http      http.Server
	staying   chan struct{} // has one for each of those that do not go of themselves
	terminals terminals
	quit      chan struct{} // closed: those who follow are told the rest, and let go
	once      sync.Once
	served    sync.WaitGroup
	patience  time.Duration // clientPatience, but in tests
}

// NewServer makes a Server over these devices, at least one, and the process that serves them.
// errors gets a line for what goes wrong with a connection; it may be nil.
func NewServer(process Process, all []Target, errors *log.Logger) *Server {
	if errors == nil {
		errors = log.New(io.Discard, "", 0)
	}
	s := &Server{all: all, process: process, staying: make(chan struct{}, maxStaying), quit: make(chan struct{})}
	s.http = http.Server{Handler: s.withBody(s.routes()), MaxHeaderBytes: 16 << 10, ErrorLog: errors}
	s.setPatience(clientPatience)
	return s
}

// setPatience says how long a client may take.
func (s *Server) setPatience(d time.Duration) {
	s.patience = d
	s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.IdleTimeout = d, d, d
}

// withBody has a request's body read before next is asked for the answer, which may take long: only
// the client's part has an end.
func (s *Server) withBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		out := http.NewResponseController(w)
		// Where that cannot be said, there is no socket.
		_ = out.SetWriteDeadline(time.Now().Add(s.patience))
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = fmt.Errorf("it has not come within %v", s.patience)
			}
			fail(w, Wrong("body: %v", err))
			return
		}
		_ = out.SetReadDeadline(time.Time{})
		_ = out.SetWriteDeadline(time.Time{})
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(&deadlineWriter{w, out, s.patience}, r)
	})
}

// deadlineWriter is an answer whose client has so long to take each piece of it.
type deadlineWriter struct {
	http.ResponseWriter
	out      *http.ResponseController
	patience time.Duration
}

func (w *deadlineWriter) Write(p []byte) (int, error) {
	_ = w.out.SetWriteDeadline(time.Now().Add(w.patience))
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *deadlineWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// FlushError sends what was written; http.ResponseController looks for it.
func (w *deadlineWriter) FlushError() error {
	_ = w.out.SetWriteDeadline(time.Now().Add(w.patience))
	return w.out.Flush()
}

// Start serves the clients of ln in the background, until Close. ln is the Server's from then on.
func (s *Server) Start(ln net.Listener) {
	s.served.Go(func() {
		// It always ends with an error: that it was closed, or that the listener was.
		_ = s.http.Serve(limitConns(ln, maxConns))
	})
}

// Close ends the Server. A client that follows the trace gets what has happened until now, one that
// is attached to a port is told, other answers under way have a moment to end, and then every
// connection is closed.
func (s *Server) Close() {
	s.once.Do(func() { close(s.quit) })
	s.terminals.close()
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	s.served.Wait()
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	device(s, mux, "GET", "/status", func(ctx context.Context, t Target, _ nothing) (Status, error) {
		ctx, cancel := context.WithTimeout(ctx, statusPatience)
		defer cancel()
		return t.Status(ctx), nil
	})
	device(s, mux, "GET", "/trace", func(_ context.Context, t Target, _ nothing) (Trace, error) {
		about, log := t.Trace()
		about.Start, about.Seconds, about.Events = log.Start(), time.Since(log.Start()).Seconds(), log.Snapshot()
		return about, nil
	})
	for _, prefix := range prefixes {
		mux.HandleFunc("GET "+prefix+"/trace/follow", s.follow)
		mux.HandleFunc("GET "+prefix+"/ports/attach", s.attach)
	}
	model(s, mux, "GET", "/ports", func(ctx context.Context, d Ported, _ nothing) (Ports, error) {
		ctx, cancel := context.WithTimeout(ctx, statusPatience)
		defer cancel()
		return Ports{d.Ports(ctx)}, nil
	})
	model(s, mux, "POST", "/ports", func(ctx context.Context, d Ported, p NewPort) (Port, error) { return d.AddPort(ctx, p.Port) })
	model(s, mux, "POST", "/ports/remove", func(ctx context.Context, d Ported, p NewPort) (nothing, error) {
		return nothing{}, d.RemovePort(ctx, p.Port)
	})
	model(s, mux, "GET", "/faults", func(_ context.Context, d Faulty, _ nothing) (Faults, error) { return d.Faults() })
	model(s, mux, "POST", "/faults", func(_ context.Context, d Faulty, r Rules) (IDs, error) {
		if len(r.Rules) == 0 {
			return IDs{}, Wrong("rules: there are none")
		}
		ids, err := d.SetFaults(r.Rules)
		return IDs{ids}, err
	})
	model(s, mux, "POST", "/faults/clear", func(_ context.Context, d Faulty, r IDs) (nothing, error) { return nothing{}, d.ClearFaults(r.IDs) })
	model(s, mux, "POST", "/faults/release", func(_ context.Context, d Faulty, r IDs) (nothing, error) { return nothing{}, d.ReleaseFaults(r.IDs) })
	model(s, mux, "POST", "/faults/crash", func(ctx context.Context, d Faulty, o Outage) (Losses, error) { return d.Crash(ctx, o) })
	model(s, mux, "POST", "/resize", func(ctx context.Context, d Sized, _ nothing) (Size, error) { return d.Resize(ctx) })
	model(s, mux, "POST", "/clear-failure", func(ctx context.Context, d Failing, _ nothing) (Cleared, error) { return d.ClearFailure(ctx) })
	device(s, mux, "POST", "/revoke", func(ctx context.Context, t Target, _ nothing) (nothing, error) { return nothing{}, t.Revoke(ctx) })

	handle(mux, "GET /v1/log-level", func(*http.Request, nothing) (Level, error) { return Level{s.process.LogLevel()}, nil })
	handle(mux, "PUT /v1/log-level", func(_ *http.Request, l Level) (Level, error) {
		err := s.process.SetLogLevel(l.Level)
		return Level{s.process.LogLevel()}, err
	})
	handle(mux, "GET /v1/devices", func(*http.Request, nothing) (Devices, error) { return Devices{s.names()}, nil })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, &Error{http.StatusNotFound, "there is no " + r.Method + " " + r.URL.Path})
	})
	return mux
}

// prefixes are what the paths of a device begin with: the first is for the only one.
var prefixes = []string{"/v1", "/v1/devices/{device}"}

// device has f answer for the device that the path says.
func device[In, Out any](s *Server, mux *http.ServeMux, method, path string, f func(context.Context, Target, In) (Out, error)) {
	for _, prefix := range prefixes {
		handle(mux, method+" "+prefix+path, func(r *http.Request, in In) (out Out, err error) {
			t, err := s.target(r)
			if err != nil {
				return out, err
			}
			return f(r.Context(), t, in)
		})
	}
}

// model is device for what only some devices can be asked: those whose model is a Part.
func model[Part, In, Out any](s *Server, mux *http.ServeMux, method, path string, f func(context.Context, Part, In) (Out, error)) {
	device(s, mux, method, path, func(ctx context.Context, t Target, in In) (out Out, err error) {
		m, err := part[Part](t, strings.TrimPrefix(path, "/"))
		if err != nil {
			return out, err
		}
		return f(ctx, m, in)
	})
}

// part gives a device's model, which must be a Part to be asked for what.
func part[Part any](t Target, what string) (p Part, err error) {
	m, err := t.Model()
	if err != nil {
		return p, err
	}
	p, ok := m.(Part)
	if !ok {
		return p, Impossible("the device is none that can be asked for %s", what)
	}
	return p, nil
}

// target finds the device that a request is about.
func (s *Server) target(r *http.Request) (Target, error) {
	name := r.PathValue("device")
	if name == "" && len(s.all) > 1 {
		return nil, Impossible("there are %d devices, and one has to be named (--device): %s", len(s.all), strings.Join(s.names(), ", "))
	}
	for _, d := range s.all {
		if name == "" || d.Name() == name {
			return d, nil
		}
	}
	return nil, &Error{http.StatusNotFound, fmt.Sprintf("there is no device %q; there are: %s", name, strings.Join(s.names(), ", "))}
}

func (s *Server) names() []string {
	names := []string{}
	for _, d := range s.all {
		if d.Name() != "" {
			names = append(names, d.Name())
		}
	}
	return names
}

// nothing is a body without content.
type nothing struct{}

// handle has requests that match the pattern answered by f, from the JSON object in their body,
// which may be missing.
func handle[In, Out any](mux *http.ServeMux, pattern string, f func(*http.Request, In) (Out, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var in In
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		err := d.Decode(&in)
		if err == nil {
			// Whoever sends two objects means both.
			if _, err = d.Token(); err == nil {
				err = errors.New("there is more behind the JSON object")
			}
		}
		if !errors.Is(err, io.EOF) {
			fail(w, Wrong("body: %v", err))
			return
		}
		out, err := f(r, in)
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

// stay lets a client stay until leave, if there are not too many.
func (s *Server) stay() error {
	select {
	case s.staying <- struct{}{}:
		return nil
	default:
		return &Error{http.StatusServiceUnavailable, fmt.Sprintf("%d clients follow a trace or are attached to a port already, and more may not", maxStaying)}
	}
}

func (s *Server) leave() { <-s.staying }

// follow sends the events from since on, one a line, and goes on with those that come, until the
// client or the Server has enough.
func (s *Server) follow(w http.ResponseWriter, r *http.Request) {
	t, err := s.target(r)
	if err != nil {
		fail(w, err)
		return
	}
	next := uint64(0)
	if since := r.FormValue("since"); since != "" {
		var err error
		if next, err = strconv.ParseUint(since, 10, 64); err != nil {
			fail(w, Wrong("since=%s: must be the number of an event", since))
			return
		}
	}
	if err := s.stay(); err != nil {
		fail(w, err)
		return
	}
	defer s.leave()
	_, log := t.Trace()
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
