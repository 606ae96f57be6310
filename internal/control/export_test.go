package control

import (
	"net"
	"net/http"
	"time"
)

// MaxBody is what a client may send, in bytes.
const MaxBody = maxBody

// Handler answers requests as the Server does, without a socket.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// MaxConns and MaxStaying are how many clients there may be at once.
const (
	MaxConns   = maxConns
	MaxStaying = maxStaying
)

// SetPatience says how long a client may take, before Start.
func (s *Server) SetPatience(d time.Duration) { s.setPatience(d) }

// NewTerminal makes a Terminal of a connection.
func NewTerminal(conn net.Conn) *Terminal { return newTerminal(conn, conn) }

// Bye ends it.
func (t *Terminal) Bye() { t.bye() }
