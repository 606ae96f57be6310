package nbd

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"vdev/devsw"
)

// defaultPort is NBD's, as IANA has assigned it.
const defaultPort = "10809"

// target is what an NBD URI says (doc/uri.md).
type target struct {
	network string // "tcp" or "unix"
	address string // host:port, or the socket's path; "@name" in the abstract name space
	export  string
	tls     bool

	// directory with ca-cert.pem and perhaps client-cert.pem and client-key.pem; empty: the host's
	// CAs
	certificates string
	hostname     string // what the server's certificate is for
	noVerify     bool   // whoever the server is
}

// parseURI reads an NBD URI: nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, and both
// with nbds, which is TLS. Beside the standard's query parameters it knows
// tls-certificates=DIRECTORY, as libnbd does. Errors wrap EINVAL, or EOPNOTSUPP for what is right
// but cannot be done.
func parseURI(s string) (target, error) {
	t, err := parseTarget(s)
	if err != nil {
		return t, fmt.Errorf("URI %q: %w", s, err)
	}
	return t, nil
}

func parseTarget(s string) (t target, err error) {
	u, err := url.Parse(s)
	if err != nil {
		return t, fmt.Errorf("%w: %w", err.(*url.Error).Err, devsw.EINVAL)
	}
	switch u.Scheme {
	case "nbd", "nbds":
		t.network = "tcp"
	case "nbd+unix", "nbds+unix":
		t.network = "unix"
	default:
		return t, fmt.Errorf("scheme %q: must be nbd, nbds, nbd+unix or nbds+unix: %w", u.Scheme, devsw.EINVAL)
	}
	if u.Opaque != "" || u.Fragment != "" {
		return t, fmt.Errorf("is not of the form %s://... (a # is written %%23): %w", u.Scheme, devsw.EINVAL)
	}
	t.tls = strings.HasPrefix(u.Scheme, "nbds")
	t.export = strings.TrimPrefix(u.Path, "/")
	if len(t.export) > maxString || strings.ContainsRune(t.export, 0) {
		return t, fmt.Errorf("the export's name must have no NUL and at most %d bytes: %w", maxString, devsw.EINVAL)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return t, fmt.Errorf("%w: %w", err, devsw.EINVAL)
	}
	known := []string{}
	if t.network == "unix" {
		known = append(known, "socket")
	}
	if t.tls {
		known = append(known, "tls-type", "tls-hostname", "tls-verify-peer", "tls-certificates", "tls-psk-file", "tls-username")
	}
	for key, values := range query {
		switch {
		case !slices.Contains(known, key):
			return t, fmt.Errorf("parameter %q means nothing with %s: %w", key, u.Scheme, devsw.EINVAL)
		case len(values) > 1:
			return t, fmt.Errorf("parameter %q is given twice: %w", key, devsw.EINVAL)
		}
	}
	if err := t.setAddress(u, query.Get("socket")); err != nil {
		return t, err
	}
	return t, t.setTLS(u, query)
}

func (t *target) setAddress(u *url.URL, socket string) error {
	if t.network == "unix" {
		switch {
		case u.Host != "":
			return fmt.Errorf("has a host, %q, beside a Unix socket (three slashes are needed): %w", u.Host, devsw.EINVAL)
		case socket == "" || socket == "\x00":
			return fmt.Errorf("the parameter socket=PATH is missing: %w", devsw.EINVAL)
		}
		if socket[0] == 0 {
			socket = "@" + socket[1:]
		}
		t.address = socket
		return nil
	}
	host, port := u.Hostname(), u.Port()
	if host == "" {
		return fmt.Errorf("the host is missing: %w", devsw.EINVAL)
	}
	if port == "" {
		port = defaultPort
	}
	t.address = net.JoinHostPort(host, port)
	t.hostname = host
	return nil
}

func (t *target) setTLS(u *url.URL, query url.Values) error {
	if !t.tls {
		return nil
	}
	kind := query.Get("tls-type")
	switch {
	case kind == "psk" || kind == "" && (query.Has("tls-psk-file") || u.User != nil):
		return fmt.Errorf("pre-shared keys: Go's crypto/tls does not have them; use certificates: %w", devsw.EOPNOTSUPP)
	case kind == "anon":
		return fmt.Errorf("anonymous TLS: Go's crypto/tls does not have it; use certificates: %w", devsw.EOPNOTSUPP)
	case kind != "" && kind != "x509":
		return fmt.Errorf("tls-type %q: must be x509: %w", kind, devsw.EINVAL)
	case query.Has("tls-psk-file") || query.Has("tls-username"):
		return fmt.Errorf("tls-psk-file and tls-username mean nothing with tls-type x509: %w", devsw.EINVAL)
	}
	switch v := query.Get("tls-verify-peer"); v {
	case "", "1":
	case "0":
		t.noVerify = true
	default:
		return fmt.Errorf("tls-verify-peer %q: must be 0 or 1: %w", v, devsw.EINVAL)
	}
	t.certificates = query.Get("tls-certificates")
	if h := query.Get("tls-hostname"); h != "" {
		t.hostname = h
	}
	if t.hostname == "" && !t.noVerify {
		return fmt.Errorf("tls-hostname=NAME is missing: whom must the server's certificate be for? %w", devsw.EINVAL)
	}
	return nil
}
