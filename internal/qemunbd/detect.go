package qemunbd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Raw is the format of an image that has none.
const Raw = "raw"

// magics are what images begin with, by QEMU's names of the formats (block/*.c, the drivers' bdrv_probe). LUKS is not among them: a
// guest encrypts its disk in the same way.
var magics = []struct {
	format string
	at     int
	bytes  string
}{
	{"qcow2", 0, "QFI\xfb\x00\x00\x00\x02"},
	{"qcow2", 0, "QFI\xfb\x00\x00\x00\x03"},
	{"qcow", 0, "QFI\xfb\x00\x00\x00\x01"},
	{"qed", 0, "QED\x00"},
	{"vmdk", 0, "KDMV"},
	{"vmdk", 0, "COWD"},
	{"vmdk", 0, "# Disk DescriptorFile"},
	{"vdi", 0x40, "\x7f\x10\xda\xbe"},
	{"vhdx", 0, "vhdxfile"},
	{"vpc", 0, "conectix"},
	{"parallels", 0, "WithoutFreeSpace"},
	{"parallels", 0, "WithouFreSpacExt"},
}

// suffixes are how the names of such images end.
var suffixes = map[string]string{
	".qcow2": "qcow2", ".qcow": "qcow", ".qed": "qed", ".vmdk": "vmdk", ".vdi": "vdi", ".vhdx": "vhdx", ".vhd": "vpc", ".vpc": "vpc", ".hds": "parallels",
}

// FormatError says that a file's format has to be told: its name and its content do not say the same.
type FormatError struct {
	File    string
	Name    string // the format that the file's name stands for, or Raw
	Content string // the format that its content looks like, or Raw
}

func (e *FormatError) Error() string {
	if e.Content == Raw {
		return fmt.Sprintf("%s: is named like a %s image and does not begin like one: say which format it has", e.File, e.Name)
	}
	return fmt.Sprintf("%s: begins like a %s image, which a guest may have written there, and is not named like one: say whether its format is %s or raw",
		e.File, e.Content, e.Content)
}

// Detect tells the format of an image by its content, as long as the file's name stands for the same; else the error is a
// *FormatError. A file that is neither regular nor a block device, or that cannot be read, is Raw: whoever opens it will say what is
// wrong with it.
func Detect(file string) (format string, err error) {
	info, err := os.Stat(file)
	if err != nil || !info.Mode().IsRegular() && info.Mode().Type() != os.ModeDevice {
		return Raw, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return Raw, nil
	}
	defer f.Close()
	head := make([]byte, 512)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return Raw, nil
	}
	content, name := byContent(head[:n]), byName(file)
	if content != name {
		return "", &FormatError{File: file, Name: name, Content: content}
	}
	return content, nil
}

// byContent tells what an image that begins so looks like.
func byContent(head []byte) string {
	for _, m := range magics {
		if len(head) >= m.at && bytes.HasPrefix(head[m.at:], []byte(m.bytes)) {
			return m.format
		}
	}
	return Raw
}

// byName tells what a file's name stands for.
func byName(file string) string {
	if format, ok := suffixes[strings.ToLower(filepath.Ext(file))]; ok {
		return format
	}
	return Raw
}
