package vhostuser

import "context"

// Socket is what a Backend needs of a connected Unix socket.
type Socket = socket

// ServeSocket is ServeConn for what need not be one.
func (b *Backend) ServeSocket(ctx context.Context, c Socket) error { return b.serve(ctx, c) }
