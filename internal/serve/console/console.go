// Package console is what a served device is that is a console: ports, each of them a line with
// what is at its other side, behind virtio-console. It is a serve.Kind.
//
//	Console   what somebody has described: the serve.Kind
//	port      a line with its ends
//	model     virtio-console on ports: the serve.Model, and what the control socket can ask of a
//	          console
//	attached  a terminal that has come by the control socket
package console

import (
	"context"
	"strings"

	"vdev/internal/control"
	"vdev/internal/serve"
	"vdev/internal/spec"
)

// Console is a console that is to be served.
type Console struct {
	spec.Console
	Own *Own // vdev's terminal, for a port with the driver stdio
}

var _ serve.Kind = Console{}

// Name implements serve.Kind.
func (c Console) Name() string { return "console" }

// Title implements serve.Kind.
func (c Console) Title() string { return "console" }

// About implements serve.Kind.
func (c Console) About() []any {
	var ports []string
	for i := range c.Ports {
		ports = append(ports, describe(&c.Ports[i]))
	}
	return []any{"ports", strings.Join(ports, "; ")}
}

// Queues implements serve.Kind: one event loop serves all of them.
func (c Console) Queues() int { return 1 }

// Programs implements serve.Kind: a console starts none, but what waits for a file or for vdev's
// own terminal has a thread.
func (c Console) Programs(context.Context) (least, most int) {
	for i := range c.Ports {
		if p := &c.Ports[i]; p.Driver == "file" || p.Driver == "stdio" {
			most++
		}
		if c.Ports[i].Log != nil {
			most++
		}
	}
	return 0, most
}

// Describe implements serve.Kind.
func (c Console) Describe(st *control.Status) {
	order := "columns-first"
	if c.RowsFirst {
		order = "rows-first"
	}
	st.Console = &control.Console{
		Multiport: c.Multiport, MaxPorts: c.MaxPorts, Queues: c.Console.Queues(), ResizeOrder: order, Ports: []control.Port{},
	}
}

// describe says in a few words what a port is.
func describe(p *spec.Port) string {
	words := []string{p.String() + ":", p.Driver}
	if place := p.Place(); place != "" {
		words = append(words, place)
	}
	return strings.Join(words, " ")
}
