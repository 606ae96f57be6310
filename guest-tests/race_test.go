//go:build race

package guesttests

// raceEnabled has vdev built with the race detector, as these tests are.
const raceEnabled = true
