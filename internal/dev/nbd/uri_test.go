package nbd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdev/devsw"
)

var (
	goodURIs = map[string]target{
		"nbd://example.com":                          {network: "tcp", address: "example.com:10809", hostname: "example.com"},
		"nbd://example.com/":                         {network: "tcp", address: "example.com:10809", hostname: "example.com"},
		"nbd://example.com//disk":                    {network: "tcp", address: "example.com:10809", hostname: "example.com", export: "/disk"},
		"nbd://example.com/hello%20world":            {network: "tcp", address: "example.com:10809", hostname: "example.com", export: "hello world"},
		"nbd://[::1]:1234/x":                         {network: "tcp", address: "[::1]:1234", hostname: "::1", export: "x"},
		"nbd+unix:///disk?socket=/run/nbd.sock":      {network: "unix", address: "/run/nbd.sock", export: "disk"},
		"nbd+unix:///?socket=%00/abstract":           {network: "unix", address: "@/abstract"},
		"nbds://h?tls-verify-peer=0":                 {network: "tcp", address: "h:10809", hostname: "h", tls: true, noVerify: true},
		"nbds+unix:///?socket=s&tls-hostname=h":      {network: "unix", address: "s", hostname: "h", tls: true},
		"nbds://h/?tls-type=x509&tls-certificates=d": {network: "tcp", address: "h:10809", hostname: "h", tls: true, certificates: "d"},
	}
	badURIs = map[string]struct {
		says string
		e    devsw.Errno
	}{
		"":                                      {`scheme ""`, devsw.EINVAL},
		"http://h":                              {`scheme "http"`, devsw.EINVAL},
		"nbd+vsock://2":                         {`scheme "nbd+vsock"`, devsw.EINVAL},
		"nbd:h":                                 {"not of the form", devsw.EINVAL},
		"nbd:///x":                              {"the host is missing", devsw.EINVAL},
		"nbd://h:port":                          {"port", devsw.EINVAL},
		"nbd+unix:///x":                         {"socket=PATH is missing", devsw.EINVAL},
		"nbd+unix://h/x?socket=s":               {"has a host", devsw.EINVAL},
		"nbd://h?socket=s":                      {`"socket" means nothing with nbd`, devsw.EINVAL},
		"nbd://h?tls-type=x509":                 {`"tls-type" means nothing with nbd`, devsw.EINVAL},
		"nbd+unix:///?socket=a&socket=b":        {"given twice", devsw.EINVAL},
		"nbd://h/%00":                           {"no NUL", devsw.EINVAL},
		"nbds://h?tls-type=psk":                 {"pre-shared keys", devsw.EOPNOTSUPP},
		"nbds://user@h":                         {"pre-shared keys", devsw.EOPNOTSUPP},
		"nbds://h?tls-psk-file=f":               {"pre-shared keys", devsw.EOPNOTSUPP},
		"nbds://h?tls-type=anon":                {"anonymous", devsw.EOPNOTSUPP},
		"nbds://h?tls-type=x":                   {"must be x509", devsw.EINVAL},
		"nbds://h?tls-verify-peer=no":           {"must be 0 or 1", devsw.EINVAL},
		"nbds+unix:///?socket=s":                {"tls-hostname", devsw.EINVAL},
		"nbds://h?tls-type=x509&tls-psk-file=f": {"mean nothing", devsw.EINVAL},
		"nbd://h/" + strings.Repeat("x", maxString+1): {"at most 4096", devsw.EINVAL},
	}
)

func TestURIs(t *testing.T) {
	for s, want := range goodURIs {
		if got, err := parseURI(s); err != nil || got != want {
			t.Errorf("parseURI(%q) = %+v, %v; want %+v", s, got, err, want)
		}
	}
	for s, want := range badURIs {
		if got, err := parseURI(s); !errors.Is(err, want.e) || !strings.Contains(err.Error(), want.says) {
			t.Errorf("parseURI(%q) = %+v, %v; want an error that says %q", s, got, err, want.says)
		}
	}
}

func FuzzURI(f *testing.F) {
	for s := range goodURIs {
		f.Add(s)
	}
	for s := range badURIs {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := parseURI(s)
		switch {
		case err != nil:
			if !errors.Is(err, devsw.EINVAL) && !errors.Is(err, devsw.EOPNOTSUPP) {
				t.Errorf("an error of another kind: %v", err)
			}
		case u.address == "", len(u.export) > maxString, u.tls && u.hostname == "" && !u.noVerify,
			!u.tls && (u.noVerify || u.certificates != ""), u.network != "tcp" && u.network != "unix",
			strings.ContainsRune(u.export, 0):
			t.Errorf("%+v", u)
		}
	})
}

// certify makes a certificate for "nbd.test" that signs itself, with its key, and returns the
// directory.
func certify(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nbd.test"}, DNSNames: []string{"nbd.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	for name, p := range map[string][]byte{
		"ca-cert.pem": certPEM, "server-cert.pem": certPEM, "server-key.pem": keyPEM, "client-cert.pem": certPEM, "client-key.pem": keyPEM,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTLSWithCertificates(t *testing.T) {
	dir := certify(t)
	s := nbdkit(t, "--tls=require", "--tls-certificates="+dir, "--tls-verify-peer", "memory", "size=1M")
	uri := "nbds+unix:///?socket=" + url.QueryEscape(s.path) + "&tls-certificates=" + url.QueryEscape(dir)
	t.Run("disk", func(t *testing.T) { checkModel(t, uri+"&tls-hostname=nbd.test", 4) })

	r := newRig(t)
	if _, err := r.d.Create(0, Config{URI: uri + "&tls-hostname=other.test"}); err == nil || !strings.Contains(err.Error(), "other.test") {
		t.Errorf("a certificate for another host: %v", err)
	}
	if _, err := r.d.Create(0, Config{URI: uri + "&tls-verify-peer=0"}); err != nil {
		t.Errorf("without verification: %v", err)
	}
	var refused *RefusedError
	if _, err := r.d.Create(1, Config{URI: s.uri()}); !errors.As(err, &refused) || !strings.Contains(err.Error(), "demands TLS") {
		t.Errorf("without TLS: %v", err)
	}
	if _, err := r.d.Create(1, Config{URI: "nbds+unix:///?tls-hostname=nbd.test&socket=" + url.QueryEscape(s.path)}); err == nil {
		t.Error("a certificate that nobody vouches for is taken")
	}
}

func TestTransferOverTLSIsGivenUp(t *testing.T) {
	dir := certify(t)
	s := nbdkit(t, "--tls=require", "--tls-certificates="+dir, "--filter=delay", "memory", "size=64M", "delay-write=300ms", "delay-read=300ms")
	uri := "nbds+unix:///?tls-hostname=nbd.test&socket=" + url.QueryEscape(s.path) + "&tls-certificates=" + url.QueryEscape(dir)
	r := newRig(t)
	dev := r.create(Config{URI: uri})
	for range 2 {
		d := r.open(dev)
		w, wdone := d.Buf(devsw.BWrite, 0, 0, make([]byte, 16<<20))
		d.Issue(w)
		rd, rdone := d.Buf(devsw.BRead, 0, 0, make([]byte, 16<<20))
		d.Issue(rd)
		r.close(dev)
		d.Wait(wdone)
		d.Wait(rdone)
		if w.Error != devsw.ECANCELED || rd.Error != devsw.ECANCELED {
			t.Errorf("they end with %v and %v", w.Error, rd.Error)
		}
	}
	d := r.open(dev)
	if b := d.Transfer(devsw.BRead, 0, 0, make([]byte, 4096)); b.Error != 0 {
		t.Errorf("a read ends with %v", b.Error)
	}
}
