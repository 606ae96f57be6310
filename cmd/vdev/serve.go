package main
import ("context";"io";"errors")
func serveBlk(ctx context.Context, c blkConfig, stderr io.Writer) error { return errors.New("not yet") }
