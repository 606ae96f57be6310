package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"vdev/internal/trace"
)

// patience is how long a Client waits for an answer for which the other side need not wait.
const patience = 10 * time.Second

// Client asks the vdev behind one control socket. Its methods return an *Error for what vdev
// refuses; other errors name the socket.
type Client struct {
	path   string
	prefix string // of the paths that are a device's
	http   http.Client
}

// NewClient makes a Client for the socket at path. Nothing is connected yet, and nothing stays
// connected.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path: path, prefix: "/v1", http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Device returns a Client for the device of that name.
func (c *Client) Device(name string) *Client {
	d := *c
	d.prefix = "/v1/devices/" + url.PathEscape(name)
	return &d
}

// Devices returns the names of the devices; none where there is one, without a name.
func (c *Client) Devices(ctx context.Context) ([]string, error) {
	var d Devices
	err := c.quick(ctx, "GET", "/v1/devices", nil, &d)
	return d.Devices, err
}

// Status returns the status.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	return st, c.quick(ctx, "GET", c.prefix+"/status", nil, &st)
}

// Trace returns the record of the device's life.
func (c *Client) Trace(ctx context.Context) (t Trace, err error) {
	return t, c.quick(ctx, "GET", c.prefix+"/trace", nil, &t)
}

// Follow calls event for each event of the device's life that is still known, and for those that
// come. It ends without an error when vdev ends or ctx is done, and with event's error when event
// returns one.
func (c *Client) Follow(ctx context.Context, event func(trace.Event) error) error {
	body, err := c.send(ctx, "GET", c.prefix+"/trace/follow", nil)
	if err == nil {
		defer body.Close()
		for d := json.NewDecoder(body); err == nil; {
			var e trace.Event
			if err = d.Decode(&e); err == nil {
				if err := event(e); err != nil {
					return err
				}
			}
		}
	}
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		return nil
	}
	return err
}

// Faults returns what the driver fault does.
func (c *Client) Faults(ctx context.Context) (f Faults, err error) {
	return f, c.quick(ctx, "GET", c.prefix+"/faults", nil, &f)
}

// SetFaults puts rules in force, all or none, and returns their IDs.
func (c *Client) SetFaults(ctx context.Context, rules []string) ([]int, error) {
	var ids IDs
	err := c.quick(ctx, "POST", c.prefix+"/faults", Rules{rules}, &ids)
	return ids.IDs, err
}

// ClearFaults takes rules out of force, all of them where ids is empty.
func (c *Client) ClearFaults(ctx context.Context, ids []int) error {
	return c.quick(ctx, "POST", c.prefix+"/faults/clear", IDs{ids}, nil)
}

// ReleaseFaults ends the hangs that these rules have made, all hangs where ids is empty.
func (c *Client) ReleaseFaults(ctx context.Context, ids []int) error {
	return c.quick(ctx, "POST", c.prefix+"/faults/release", IDs{ids}, nil)
}

// Crash loses what is in the cache of the driver fault.
func (c *Client) Crash(ctx context.Context, o Outage) (l Losses, err error) {
	return l, c.call(ctx, "POST", c.prefix+"/faults/crash", o, &l)
}

// Revoke takes the device from the guest, and returns when it is closed.
func (c *Client) Revoke(ctx context.Context) error {
	return c.call(ctx, "POST", c.prefix+"/revoke", nil, nil)
}

// Resize makes vdev look at the disk's size again.
func (c *Client) Resize(ctx context.Context) (s Size, err error) {
	return s, c.call(ctx, "POST", c.prefix+"/resize", nil, &s)
}

// ClearFailure makes vdev forget that a flush has failed.
func (c *Client) ClearFailure(ctx context.Context) (f Cleared, err error) {
	return f, c.call(ctx, "POST", c.prefix+"/clear-failure", nil, &f)
}

// Ports returns the ports of a console.
func (c *Client) Ports(ctx context.Context) ([]Port, error) {
	var p Ports
	err := c.quick(ctx, "GET", c.prefix+"/ports", nil, &p)
	return p.Ports, err
}

// AddPort gives the guest a port, which spec.ParsePort reads.
func (c *Client) AddPort(ctx context.Context, port string) (p Port, err error) {
	return p, c.call(ctx, "POST", c.prefix+"/ports", NewPort{port}, &p)
}

// RemovePort takes the port of that name or id from the guest, and returns when it is closed.
func (c *Client) RemovePort(ctx context.Context, port string) error {
	return c.call(ctx, "POST", c.prefix+"/ports/remove", NewPort{port}, nil)
}

// Attach attaches to the port of that name or id. watch: only to see what it shows. ctx is for the
// beginning.
func (c *Client) Attach(ctx context.Context, port string, watch bool) (*Attachment, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer for %v", patience))
	defer cancel()
	query := url.Values{"port": {port}, "watch": {strconv.FormatBool(watch)}}
	header := http.Header{"Connection": {"Upgrade"}, "Upgrade": {upgrade}}
	body, err := c.ask(ctx, http.StatusSwitchingProtocols, "GET", c.prefix+"/ports/attach?"+query.Encode(), nil, header)
	if err != nil {
		return nil, err
	}
	conn, ok := body.(io.ReadWriteCloser)
	if !ok {
		body.Close()
		return nil, c.broken(ctx, errors.New("its connection cannot be written to"))
	}
	return newAttachment(conn), nil
}

// LogLevel returns the log level.
func (c *Client) LogLevel(ctx context.Context) (string, error) {
	var l Level
	err := c.quick(ctx, "GET", "/v1/log-level", nil, &l)
	return l.Level, err
}

// SetLogLevel changes the log level.
func (c *Client) SetLogLevel(ctx context.Context, level string) error {
	return c.quick(ctx, "PUT", "/v1/log-level", Level{level}, nil)
}

// quick is call for what is answered at once.
func (c *Client) quick(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer for %v", patience))
	defer cancel()
	return c.call(ctx, method, path, in, out)
}

// call sends in, if it is not nil, and reads the answer into out, if it is not nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return c.broken(ctx, err)
	}
	return nil
}

// send sends a request and returns the body of a good answer.
func (c *Client) send(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	return c.ask(ctx, http.StatusOK, method, path, in, http.Header{})
}

// ask is send with a header of its own, for an answer that is good when it has that status.
func (c *Client) ask(ctx context.Context, good int, method, path string, in any, header http.Header) (io.ReadCloser, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://vdev"+path, body)
	if err != nil {
		return nil, err
	}
	r.Header = header
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	if answer.StatusCode == good {
		return answer.Body, nil
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxBody))
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	var f Failure
	if json.Unmarshal(text, &f) != nil || f.Message == "" {
		f.Message = fmt.Sprintf("%s: %s %s", answer.Status, method, path)
	}
	return nil, &Error{answer.StatusCode, f.Message}
}

// broken says what is wrong with the socket, or with what is behind it.
func (c *Client) broken(ctx context.Context, err error) error {
	var op *net.OpError
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err // the rest is not what was asked for
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, syscall.ECONNREFUSED):
		err = errors.New("nobody listens on it")
	case errors.Is(err, fs.ErrNotExist):
		err = errors.New("there is no such socket (is vdev running, with --control?)")
	case errors.As(err, &op) && op.Op == "dial":
		err = op.Err
	default:
		err = fmt.Errorf("what answers is not vdev's --control (%w)", err)
	}
	return fmt.Errorf("%s: %w", c.path, err)
}
