package qemunbd

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Raw is the format of an image that has none.
const Raw = "raw"

// magics are what images begin with, by QEMU's names of the formats (block/*.c, the drivers'
// bdrv_probe). LUKS is not among them: a guest encrypts its disk in the same way.
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

// FormatError says that a file's name and its content do not say the same of its format.
type FormatError struct {
	File    string
	Name    string // the format that the file's name stands for, or Raw
	Content string // the format that its content looks like, or Raw
}

func (e *FormatError) Error() string {
	if e.Name == Raw {
		where := "begins"
		if e.Content == "vpc" {
			where = "begins or ends"
		}
		return fmt.Sprintf("%s: %s like a %s image, which a guest may have written there, and is "+
			"not named like one: it is taken for a raw one, unless another format is given", e.File, where, e.Content)
	}
	return fmt.Sprintf("%s: is named like a %s image and does not begin like one: say which format it has", e.File, e.Name)
}

// headSize is how much of a file is looked at, in bytes.
const headSize = 512

// Detect tells the format of an image by its name, which is no guest's to choose. Where the name
// stands for a raw image, and the content looks like another one, doubt says so. Where the name
// stands for another format than the content, nothing is known: that is the error, a *FormatError
// as well. For a file that is neither regular nor a block device, or that cannot be read, the name
// decides alone: whoever opens it says what is wrong with it. It may be right by then.
func Detect(file string) (format string, doubt *FormatError, err error) {
	f, err := openFile(file)
	if err != nil {
		return byName(file), nil, nil
	}
	defer f.Close()
	head, err := readUpTo(f, 0, headSize)
	if err != nil {
		return byName(file), nil, nil
	}
	content, name := byContent(head), byName(file)
	if content == Raw && hasFooter(f) {
		content = "vpc"
	}
	if content == name {
		return name, nil, nil
	}
	e := &FormatError{File: file, Name: name, Content: content}
	if name == Raw {
		return Raw, e, nil
	}
	return "", nil, e
}

// hasFooter tells whether a file ends like a VHD of fixed size, which has nothing before its data.
func hasFooter(f *os.File) bool {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size < headSize {
		return false
	}
	foot, err := readUpTo(f, size-headSize, headSize)
	return err == nil && byContent(foot) == "vpc"
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
