//go:build !race

package guesttests

const raceEnabled = false
