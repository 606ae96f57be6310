// Package wire is the line protocol between the tests and the agent in the guest. It runs over the
// guest's serial line, where the kernel prints too, at any moment and in the middle of anybody
// else's line, or over a port of a virtio console that is the agent's alone.
//
// The host sends a line "TOKEN COMMAND ARG...". The agent answers with one line, the frame, that
// repeats the token and carries a checksum. A frame that kernel messages have torn apart does not
// parse; the host then sends "TOKEN again", and the agent repeats its last answer. To the answer
// after which the guest stops the host says "TOKEN bye": nothing else tells that it has left the
// guest.
package wire

import (
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
)

const (
	mark = "\x02@" // starts a frame; kernels do not print STX
	end  = "\x03"

	// Again asks for the last answer once more.
	Again = "again"
	// Bye is what the host says to an answer that is the last one: the guest may stop now.
	Bye = "bye"
	// Hello is the token of the frame that an agent sends on its own when it has started. The text
	// is the system it runs on.
	Hello = "hello"
)

// ErrTorn says that a line holds a frame, or a part of one, that cannot be used.
var ErrTorn = errors.New("torn frame")

// Answer is what the agent has to say to one command.
type Answer struct {
	Token string
	OK    bool
	Last  bool   // of an OK one: the guest stops once the host has said Bye
	Text  string // the command's output, or its error
}

// Encode returns the frame for a, with line ends around it.
func Encode(a Answer) []byte {
	state := "err"
	switch {
	case a.Last:
		state = "last"
	case a.OK:
		state = "ok"
	}
	body := fmt.Sprintf("%s %s %s", a.Token, state, base64.StdEncoding.EncodeToString([]byte(a.Text)))
	return fmt.Appendf(nil, "\n%s%s %08x%s\n", mark, body, crc32.ChecksumIEEE([]byte(body)), end)
}

// Decode reads one line of the console. found is false for a line that has nothing to do with
// frames; err is ErrTorn for one that has, but cannot be used.
func Decode(line string) (a Answer, found bool, err error) {
	_, rest, begins := strings.Cut(line, mark)
	body, _, ends := strings.Cut(rest, end)
	if !begins {
		if strings.Contains(line, end) {
			return a, true, ErrTorn
		}
		return a, false, nil
	}
	fields := strings.Split(body, " ")
	if !ends || len(fields) != 4 {
		return a, true, ErrTorn
	}
	signed := body[:len(body)-len(fields[3])-1]
	if fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(signed))) != fields[3] {
		return a, true, ErrTorn
	}
	text, err := base64.StdEncoding.DecodeString(fields[2])
	if err != nil {
		return a, true, ErrTorn
	}
	last := fields[1] == "last"
	return Answer{Token: fields[0], OK: last || fields[1] == "ok", Last: last, Text: string(text)}, true, nil
}
