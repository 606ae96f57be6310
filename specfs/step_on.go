//go:build vdevsteps

package specfs

// stepHook is set by tests before anything runs.
var stepHook func(point string)

func step(point string) {
	if stepHook != nil {
		stepHook(point)
	}
}
