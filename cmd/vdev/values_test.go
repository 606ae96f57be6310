package main

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestListsAreReadAndWritten(t *testing.T) {
	depths, clients := severalNumbers(1, 10, 4), severalChoices([]string{"event", "poll"}, "event")
	var cpus cpuList
	for _, tt := range []struct {
		list  pflag.Value
		given string
		want  string // or part of an error
		fails bool
	}{
		{&depths, "1,3,2", "1,3,2", false},
		{&depths, "1,11", `"11" must be a whole number from 1 to 10`, true},
		{&depths, "", `"" must be`, true},
		{&depths, "2,2", `"2" is given twice`, true},
		{&clients, "poll", "poll", false},
		{&clients, "poll,event", "poll,event", false},
		{&clients, "poll,", `"" must be event or poll`, true},
		{&cpus, "0-2,5", "0,1,2,5", false},
		{&cpus, "7", "7", false},
		{&cpus, "2-1", `"2-1" must be`, true},
		{&cpus, "1-", `"1-" must be`, true},
		{&cpus, "0-99999999999", "must be", true},
	} {
		before := tt.list.String()
		err := tt.list.Set(tt.given)
		switch {
		case tt.fails && (err == nil || !strings.Contains(err.Error(), tt.want) || tt.list.String() != before):
			t.Errorf("%q: error %v, want %q; the list is %q", tt.given, err, tt.want, tt.list)
		case !tt.fails && (err != nil || tt.list.String() != tt.want):
			t.Errorf("%q: %q, %v", tt.given, tt.list, err)
		}
	}
}
