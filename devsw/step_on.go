//go:build vdevsteps

package devsw

// StepHook is set by tests before anything runs.
var StepHook func(point string)

func step(point string) {
	if StepHook != nil {
		StepHook(point)
	}
}
