package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"vdev/internal/spec"
)

// What commands have in common.

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1 // what was asked for cannot be done: a missing file, a socket in use
	exitUsage   = 2 // the command line is wrong
)

// failure is an error of a command whose command line was right.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// oneLine returns the text of err without line breaks, which joined errors have in them.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// noArguments refuses arguments that are no flags, with a hint at what may have been meant.
func noArguments(hint string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		if !cmd.HasParent() {
			return fmt.Errorf("there is no command %q", args[0])
		}
		return fmt.Errorf("unexpected argument %q%s", args[0], hint)
	}
}

// atMostOne refuses more than one argument.
func atMostOne(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("unexpected argument %q", args[1])
	}
	return nil
}

// printJSON writes v as people read JSON.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// version returns the version of the module that this binary was built from, with the commit where
// the build recorded it. A build from a work tree without either is "(devel)".
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && v == "(devel)" {
			v = s.Value
		}
	}
	return v
}

// fileName is a socket's path as the system takes it: one that begins with @ would be a name that
// is in no file system.
func fileName(path string) string {
	if path[0] == '@' {
		return "./" + path
	}
	return path
}

// completeProcess completes the flags that are about all of vdev.
func completeProcess(cmd *cobra.Command, p *spec.ProcessFlags) {
	completeChoices(cmd, p.Choices())
	completeNothing(cmd, "reactors", "poll-us")
}

func completeChoices(cmd *cobra.Command, choices map[string]*spec.Choice) {
	for name, c := range choices {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(c.Of, cobra.ShellCompDirectiveNoFileComp)))
	}
}

func completeNothing(cmd *cobra.Command, flags ...string) {
	for _, name := range flags {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
}

// must panics with an error that only a mistake in this program can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
