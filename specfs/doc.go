// Package specfs knows who has a device open, what is in progress on it, and
// how to take it down.
package specfs
