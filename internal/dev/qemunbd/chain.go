package qemunbd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vdev/devsw"
)

// Chain says which other files an image may lead to. Its header decides that, which somebody else
// may have made, and qemu-nbd opens whatever it names.
type Chain string

const (
	// ChainFolder: files in the image's own folder, or below it, that are only read.
	ChainFolder Chain = "folder"
	// ChainFiles: any file or block device of the host, also those that are written to (qcow2's
	// data file).
	ChainFiles Chain = "files"
	// ChainAny: whatever QEMU has a protocol for, and what a VMDK's text names.
	ChainAny Chain = "any"
)

// Chains are the values that a Chain may have.
var Chains = []string{string(ChainFolder), string(ChainFiles), string(ChainAny)}

// maxChain is how many files an image may lead to, itself included. Each is opened by qemu-nbd and
// takes memory there.
const maxChain = 256

// ChainError says that an image leads to what it may not. It wraps EINVAL, or what opening a file
// gives.
type ChainError struct {
	Image string // whose header it is
	Kind  string // "backing file", "data file"
	Name  string // as the header has it
	Why   string
	Allow Chain // what would allow it; empty: nothing
	Err   error
}

func (e *ChainError) Error() string {
	s := e.Image + ": "
	if e.Kind != "" {
		s += fmt.Sprintf("its %s %q ", e.Kind, e.Name)
	}
	s += e.Why
	if e.Allow != "" {
		s += fmt.Sprintf("; if that is as it should be, allow it with backing-chain=%s", e.Allow)
	}
	return s
}

// Unwrap gives the cause.
func (e *ChainError) Unwrap() error { return e.Err }

// formats are those that an image's header may give to the image below it, by QEMU's names: others
// are protocols, which open something else.
var formats = []string{Raw, "file", "luks", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels"}

// link is a file of a chain.
type link struct {
	file   string
	format string // empty: not known, since QEMU's own way of finding it is not trusted here
	kind   string
}

// protocol tells whether QEMU takes a name for one with a protocol (path_has_protocol, util):
// "nbd:...", "json:...".
func protocol(name string) string {
	before, _, found := strings.Cut(name, ":")
	if !found || strings.Contains(before, "/") {
		return ""
	}
	return before
}

// follow reads the headers of an image and of all that it leads to, and gives the files, the image
// first. Nothing is opened but regular files and block devices.
func follow(image, format string, allowed Chain) ([]link, error) {
	folder, err := filepath.EvalSymlinks(filepath.Dir(image))
	if err != nil {
		return nil, err
	}
	chain := []link{{image, format, "image"}}
	for i := 0; i < len(chain); i++ {
		at := chain[i]
		h, err := at.read()
		if err != nil {
			return nil, err
		}
		if h.encrypted != "" {
			return nil, secretError(at.file, h.encrypted)
		}
		if h.elsewhere != "" && allowed != ChainAny {
			return nil, &ChainError{Image: at.file, Why: h.elsewhere, Allow: ChainAny, Err: devsw.EINVAL}
		}
		for _, p := range h.parents {
			next, err := p.find(at.file, folder, allowed)
			if err != nil {
				return nil, err
			}
			if next == (link{}) {
				continue // not a file of this host
			}
			if p.kind == "backing file" && slices.ContainsFunc(chain, func(l link) bool { return sameFile(l.file, next.file) }) {
				return nil, &ChainError{Image: at.file, Kind: p.kind, Name: p.name, Why: "is in its own chain", Err: devsw.EINVAL}
			}
			if len(chain) == maxChain {
				return nil, &ChainError{Image: image, Why: fmt.Sprintf("leads to more than %d files", maxChain), Err: devsw.EINVAL}
			}
			chain = append(chain, next)
		}
	}
	return chain, nil
}

// find gives the file that p of the image's header means, if it is allowed: the zero link where it
// is none of this host's.
func (p parent) find(image, folder string, allowed Chain) (link, error) {
	refuse := func(allow Chain, why string) (link, error) {
		return link{}, &ChainError{Image: image, Kind: p.kind, Name: p.name, Why: why, Allow: allow, Err: devsw.EINVAL}
	}
	name, prefixed := strings.CutPrefix(p.name, "file:")
	if proto := protocol(name); proto != "" {
		if allowed != ChainAny {
			return refuse(ChainAny, fmt.Sprintf("is not a file's name (QEMU opens it as %q)", proto))
		}
		return link{}, nil
	}
	if name == "" {
		return refuse("", "has no name")
	}
	switch {
	case filepath.IsAbs(name):
	case prefixed && allowed != ChainAny:
		return refuse(ChainAny, "is in the folder that qemu-nbd happens to be started in")
	case prefixed:
		return link{}, nil
	default:
		// As it stands, since '..' behind a symbolic link is not where it seems to be.
		name = image[:strings.LastIndexByte(image, '/')+1] + name
	}
	if allowed == ChainFolder && p.kind != "backing file" {
		return refuse(ChainFiles, "is another file, which the guest may write to")
	}
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return link{}, &ChainError{Image: image, Kind: p.kind, Name: p.name, Why: "cannot be used: " + err.Error(), Err: err}
	}
	if allowed == ChainFolder && !within(folder, real) {
		return refuse(ChainFiles, fmt.Sprintf("is outside the folder of the image, %s", folder))
	}
	format := p.format
	if format != "" && !slices.Contains(formats, format) && allowed != ChainAny {
		return refuse(ChainAny, fmt.Sprintf("has the format %q, which is none of an image", format))
	}
	if format == "" {
		// As QEMU will find it.
		if format, err = contentOf(real); err != nil {
			return link{}, &ChainError{Image: image, Kind: p.kind, Name: p.name, Why: "cannot be used: " + err.Error(), Err: err}
		}
		if format == "" && allowed != ChainAny {
			return refuse(ChainAny, "has no format in the header, and its content may be taken for a VMDK's text")
		}
	}
	return link{name, format, p.kind}, nil
}

// within tells whether a path, without symbolic links, is below a folder.
func within(folder, path string) bool {
	rel, err := filepath.Rel(folder, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// errNoFile is why something cannot be an image.
var errNoFile = errors.New("is neither a regular file nor a block device")

// openFile opens a regular file or a block device to be read, and nothing else: to open a FIFO
// waits for somebody who writes.
func openFile(name string) (*os.File, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() && info.Mode().Type() != os.ModeDevice {
		return nil, fmt.Errorf("%s: %w: %w", name, errNoFile, devsw.EINVAL)
	}
	return os.Open(name)
}

// contentOf tells the format of an image by its content alone, as QEMU does: empty where that is
// not sure.
func contentOf(name string) (string, error) {
	f, err := openFile(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head, err := readUpTo(f, 0, headSize)
	if err != nil {
		return "", err
	}
	format := byContent(head)
	if format == Raw && len(head) > 0 && bytes.IndexByte([]byte("#v \t\n\v\f\r"), head[0]) >= 0 {
		return "", nil // QEMU knows such a text by less than byContent does (vmdk_probe)
	}
	return format, nil
}

// read reads the header of a file of the chain.
func (l link) read() (header, error) {
	f, err := openFile(l.file)
	if err != nil {
		return header{}, &ChainError{Image: l.file, Why: "cannot be used as an image: " + err.Error(), Err: err}
	}
	defer f.Close()
	h, err := readHeader(f, l.format)
	switch {
	case err != nil:
		return h, &ChainError{Image: l.file, Why: "cannot be used: " + err.Error(), Err: devsw.EINVAL}
	case l.format == "luks":
		h.encrypted = "LUKS"
	}
	return h, nil
}

// secretError says that there is no way to give a secret.
func secretError(file, how string) error {
	return &ChainError{Image: file, Err: devsw.EOPNOTSUPP, Why: fmt.Sprintf("is encrypted (%s), and there is no way to give its secret here: "+
		"serve it with a qemu-nbd of your own (qemu-nbd --object secret,... --image-opts ...) or nbdkit, and name that with "+
		"--driver nbd,uri=...", how)}
}
