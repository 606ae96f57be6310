package control

import "net/http"

// MaxBody is what a client may send, in bytes.
const MaxBody = maxBody

// Handler answers requests as the Server does, without a socket.
func (s *Server) Handler() http.Handler { return s.http.Handler }
