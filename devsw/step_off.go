//go:build !vdevsteps

package devsw

// step is where another goroutine may come between. Built with the tag
// vdevsteps it lets a test choose who goes on; else it is nothing.
func step(string) {}
