package qemunbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vdev/devsw"
)

// qcow2With makes the header of a qcow2 image that names these files.
func qcow2With(backing, format, data string) []byte {
	be := binary.BigEndian
	p := make([]byte, qcow2Header3)
	copy(p, "QFI\xfb")
	be.PutUint32(p[4:], 3)
	be.PutUint32(p[20:], 16)
	be.PutUint64(p[24:], 8<<20)
	be.PutUint32(p[96:], 4)
	be.PutUint32(p[100:], qcow2Header3)
	extension := func(kind uint32, text string) {
		p = be.AppendUint32(p, kind)
		p = be.AppendUint32(p, uint32(len(text)))
		p = append(p, text...)
		p = append(p, make([]byte, -len(text)&7)...)
	}
	if format != "" {
		extension(extBackingFormat, format)
	}
	if data != "" {
		be.PutUint64(p[72:], incompatDataFile)
		extension(extDataFile, data)
	}
	p = append(p, make([]byte, 8)...)
	if backing != "" {
		be.PutUint64(p[8:], uint64(len(p)))
		be.PutUint32(p[16:], uint32(len(backing)))
		p = append(p, backing...)
	}
	return p
}

// TestAnImageLeadsOnlyWhereItMay: the header decides what else qemu-nbd opens, and somebody else
// may have written it.
func TestAnImageLeadsOnlyWhereItMay(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "images")
	if err := os.MkdirAll(filepath.Join(folder, "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name string, content []byte) string {
		name = filepath.Join(folder, name)
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	write("base.img", make([]byte, 4096))
	write("below/base.img", make([]byte, 4096))
	outside := write("../outside.img", make([]byte, 4096))
	write("middle.qcow2", qcow2With("base.img", "raw", ""))
	write("bad-middle.qcow2", qcow2With("../outside.img", "raw", ""))
	write("unknown", qcow2With("../outside.img", "raw", ""))
	if err := syscall.Mkfifo(filepath.Join(folder, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(folder, "link.img")); err != nil {
		t.Fatal(err)
	}
	text := []byte("# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"base.img\" 0\n")
	write("text", text[len("# Disk DescriptorFile\n"):])
	if err := os.Symlink(filepath.Join(dir, "elsewhere", "below"), filepath.Join(folder, "templates")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "elsewhere", "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	write("../elsewhere/base.img", make([]byte, 4096))
	for name, c := range map[string]struct {
		format  string // default qcow2
		header  []byte
		folder  string // the error with backing-chain=folder, and so on; empty: none
		files   string
		any     string
		follows int // files of the chain, where it is allowed
	}{
		"no other file":            {header: qcow2With("", "", ""), follows: 1},
		"in the folder":            {header: qcow2With("base.img", "raw", ""), follows: 2},
		"by file:":                 {header: qcow2With("file:"+filepath.Join(folder, "base.img"), "raw", ""), follows: 2},
		"by file:, relative":       {header: qcow2With("file:base.img", "raw", ""), folder: "backing-chain=any", files: "backing-chain=any", follows: 1},
		"behind a linked folder":   {header: qcow2With("templates/../base.img", "raw", ""), folder: "is outside the folder", follows: 2},
		"a text by content":        {header: qcow2With("text", "", ""), folder: "backing-chain=any", files: "backing-chain=any", follows: 2},
		"another format's":         {header: qedWith("base.img"), folder: "does not begin like", files: "does not begin like", any: "does not begin like"},
		"below the folder":         {header: qcow2With("below/base.img", "raw", ""), follows: 2},
		"two of them":              {header: qcow2With("middle.qcow2", "qcow2", ""), follows: 3},
		"without a format":         {header: qcow2With("middle.qcow2", "", ""), follows: 3},
		"by its whole name":        {header: qcow2With(filepath.Join(folder, "base.img"), "raw", ""), follows: 2},
		"outside":                  {header: qcow2With("../outside.img", "raw", ""), folder: "backing-chain=files", follows: 2},
		"by a link":                {header: qcow2With("link.img", "raw", ""), folder: "backing-chain=files", follows: 2},
		"further down":             {header: qcow2With("bad-middle.qcow2", "qcow2", ""), folder: "bad-middle.qcow2: its backing file", follows: 3},
		"further down, by content": {header: qcow2With("unknown", "", ""), folder: "backing-chain=files", follows: 3},
		"a data file":              {header: qcow2With("", "", "base.img"), folder: "its data file \"base.img\"", follows: 2},
		"json":                     {header: qcow2With(`json:{"driver":"file"}`, "", ""), folder: "backing-chain=any", files: "backing-chain=any", follows: 1},
		"nbd":                      {header: qcow2With("nbd://localhost", "", ""), folder: "backing-chain=any", files: "backing-chain=any", follows: 1},
		"a protocol as format":     {header: qcow2With("base.img", "nbd", ""), folder: "backing-chain=any", files: "backing-chain=any", follows: 2},
		"a FIFO":                   {header: qcow2With("fifo", "raw", ""), folder: errNoFile.Error(), files: errNoFile.Error(), any: errNoFile.Error()},
		"a FIFO by content":        {header: qcow2With("fifo", "", ""), folder: errNoFile.Error(), files: errNoFile.Error(), any: errNoFile.Error()},
		"missing":                  {header: qcow2With("not-there", "raw", ""), folder: "no such file", files: "no such file", any: "no such file"},
		"itself":                   {header: qcow2With("itself", "qcow2", ""), folder: "in its own chain", files: "in its own chain", any: "in its own chain"},
		"qed":                      {format: "qed", header: qedWith("../outside.img"), folder: "backing-chain=files", follows: 2},
		"qcow":                     {format: "qcow", header: qcowWith("../outside.img"), folder: "backing-chain=files", follows: 2},
		"vmdk":                     {format: "vmdk", header: vmdkWith(1, 0, ""), follows: 1},
		"vmdk, a text":             {format: "vmdk", header: text, folder: "backing-chain=any", files: "backing-chain=any", follows: 1},
		"vmdk, a text without":     {format: "vmdk", header: []byte("createType=\"x\"\n"), folder: "backing-chain=any", files: "backing-chain=any", follows: 1},
		"vmdk without a size":      {format: "vmdk", header: vmdkWith(0, 0, ""), folder: "backing-chain=any", files: "backing-chain=any", follows: 1},
		"vmdk with a parent":       {format: "vmdk", header: vmdkWith(1, 2, "parentFileNameHint=\"x\""), folder: "backing-chain=any", files: "backing-chain=any", follows: 1},
		"vmdk, behind the header":  {format: "vmdk", header: vmdkHint(), folder: "backing-chain=any", files: "backing-chain=any", follows: 1},
		"vmdk, one that is hidden": {format: "vmdk", header: vmdkWith(1, 0, "parentFileNameHint##x\""), folder: "backing-chain=any", files: "backing-chain=any", follows: 1},
	} {
		t.Run(name, func(t *testing.T) {
			file := "image"
			if name == "itself" {
				file = name
			}
			image := write(file, c.header)
			if c.format == "" {
				c.format = "qcow2"
			}
			for chain, want := range map[Chain]string{ChainFolder: c.folder, ChainFiles: c.files, ChainAny: c.any} {
				links, err := follow(image, c.format, chain)
				switch {
				case want == "" && (err != nil || len(links) != c.follows):
					t.Errorf("%s: %v, %v; want %d files", chain, links, err, c.follows)
				case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
					t.Errorf("%s: %v, %v; want %q", chain, links, err, want)
				}
				var refused *ChainError
				if err != nil && (!errors.As(err, &refused) || !strings.Contains(err.Error(), folder)) {
					t.Errorf("%s: %v does not name the file", chain, err)
				}
			}
		})
	}
}

// vmdkWith makes the header of a VMDK in one piece: its size and the place of its descriptor in
// sectors, and what stands there, or behind the header.
func vmdkWith(capacity, descriptor uint64, text string) []byte {
	le := binary.LittleEndian
	p := make([]byte, max(descriptor, 1)*vmdkSector)
	copy(p, "KDMV\x01\x00\x00\x00")
	le.PutUint64(p[12:], capacity)
	le.PutUint64(p[28:], descriptor)
	return append(p, text...)
}

// vmdkHint makes a VMDK that names its parent behind its header, far before its descriptor.
func vmdkHint() []byte {
	p := vmdkWith(1, 0, "parentFileNameHint=\"x\"")
	p = append(p, make([]byte, 400*vmdkSector)...)
	binary.LittleEndian.PutUint64(p[28:], 300)
	return p
}

func qedWith(backing string) []byte {
	le := binary.LittleEndian
	p := make([]byte, qedHeader)
	copy(p, "QED\x00")
	le.PutUint64(p[16:], qedBackingFile|qedBackingIsRaw)
	le.PutUint32(p[56:], qedHeader)
	le.PutUint32(p[60:], uint32(len(backing)))
	return append(p, backing...)
}

func qcowWith(backing string) []byte {
	be := binary.BigEndian
	p := make([]byte, qcowHeader)
	copy(p, "QFI\xfb\x00\x00\x00\x01")
	be.PutUint64(p[8:], qcowHeader)
	be.PutUint32(p[16:], uint32(len(backing)))
	return append(p, backing...)
}

// TestHeadersAreReadAsQEMUWritesThem.
func TestHeadersAreReadAsQEMUWritesThem(t *testing.T) {
	base := makeImage(t, Raw, "8M")
	for _, c := range []struct {
		format, options string
		want            []parent
	}{
		{"qcow2", "", []parent{{base, "backing file", Raw}}},
		{"qcow2", "compat=0.10", []parent{{base, "backing file", Raw}}},
		{"qcow2", "data_file=DATA", []parent{{"DATA", "data file", Raw}}},
		{"qcow", "", []parent{{base, "backing file", ""}}},
		{"qed", "", []parent{{base, "backing file", Raw}}},
		{"vmdk", "", nil},
	} {
		t.Run(c.format+" "+c.options, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image."+c.format)
			data := image + ".data"
			args := []string{"create", "-q", "-f", c.format}
			if c.options != "" {
				args = append(args, "-o", strings.ReplaceAll(c.options, "DATA", data))
			}
			if len(c.want) > 0 && c.want[0].kind == "backing file" {
				args = append(args, "-b", base, "-F", Raw)
			}
			if out, err := exec.Command("qemu-img", append(args, image, "8M")...).CombinedOutput(); err != nil {
				t.Skipf("this qemu-img does not make it: %v: %s", err, out)
			}
			f, err := os.Open(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			h, err := readHeader(f, c.format)
			for i := range c.want {
				c.want[i].name = strings.ReplaceAll(c.want[i].name, "DATA", data)
			}
			if err != nil || !slices.Equal(h.parents, c.want) || h.encrypted != "" || h.elsewhere != "" {
				t.Errorf("%+v, %v; want %+v", h, err, c.want)
			}
			if c.format == "qcow2" && h.size != 8<<20 {
				t.Errorf("size %d", h.size)
			}
		})
	}
}

func TestAChainHasABound(t *testing.T) {
	dir := t.TempDir()
	name := func(i int) string { return fmt.Sprintf("%d.qcow2", i) }
	for i := range maxChain + 1 {
		if err := os.WriteFile(filepath.Join(dir, name(i)), qcow2With(name(i+1), "qcow2", ""), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	last := filepath.Join(dir, name(maxChain+1))
	if err := os.WriteFile(last, qcow2With("", "", ""), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := follow(filepath.Join(dir, name(0)), "qcow2", ChainFolder); err == nil || !strings.Contains(err.Error(), "more than 256 files") {
		t.Errorf("a long one: %v", err)
	}
	if chain, err := follow(filepath.Join(dir, name(2)), "qcow2", ChainFolder); err != nil || len(chain) != maxChain {
		t.Errorf("one that is as long as it may be: %d, %v", len(chain), err)
	}
}

// TestAnEncryptedImageSaysThatThereIsNoWayToGiveASecret, and what to do.
func TestAnEncryptedImageSaysThatThereIsNoWayToGiveASecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk.qcow2")
	for crypt, how := range map[uint32]string{cryptAES: "AES", cryptLUKS: "LUKS", 7: "method 7"} {
		p := qcow2With("", "", "")
		binary.BigEndian.PutUint32(p[32:], crypt)
		if err := os.WriteFile(file, p, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := New(Config{File: file, Format: "qcow2"})
		if !errors.Is(err, devsw.EOPNOTSUPP) || !strings.Contains(err.Error(), how) || !strings.Contains(err.Error(), "--driver nbd,uri=") {
			t.Errorf("%s: %v", how, err)
		}
	}
	if err := os.WriteFile(file, []byte("LUKS\xba\xbe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{File: file, Format: "luks"}); !errors.Is(err, devsw.EOPNOTSUPP) {
		t.Errorf("LUKS: %v", err)
	}
}

func TestTheFilesOfTheChainAreTold(t *testing.T) {
	base := makeImage(t, "qcow2", "8M")
	image := filepath.Join(filepath.Dir(base), "top.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", filepath.Base(base), "-F", "qcow2", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var told []string
	s := newServer(t, Config{File: image, Format: "qcow2", Note: func(text string) { told = append(told, text) }})
	start(t, s)
	s.Stop()
	start(t, s)
	if len(told) != 1 || !strings.Contains(told[0], base) {
		t.Errorf("told %q, want %s once", told, base)
	}
}

func TestSizeOfAnImageThatIsResizedBetweenOpens(t *testing.T) {
	for _, format := range []string{"qcow2", "vdi", "qed"} {
		image := makeImage(t, format, "8M")
		s := newServer(t, Config{File: image, Format: format})
		check := func(want int64) {
			t.Helper()
			if size, ok, err := s.Size(); size != want || !ok || err != nil {
				t.Errorf("%s: size %d, %v, %v; want %d", format, size, ok, err, want)
			}
		}
		check(8 << 20)
		start(t, s)
		s.Stop()
		if out, err := exec.Command("qemu-img", "resize", "-f", format, image, "16M").CombinedOutput(); err != nil {
			t.Logf("qemu-img does not resize %s: %v: %s", format, err, out)
			continue
		}
		check(16 << 20)
	}
}

// FuzzHeader reads headers of any content: it ends, keeps within bounds, and names no file without
// a name.
func FuzzHeader(f *testing.F) {
	formats := []string{"qcow2", "qcow", "qed", "vmdk"}
	f.Add(byte(3), vmdkWith(1, 2, "parentFileNameHint=\"x\""))
	for i, p := range [][]byte{
		qcow2With("base.img", "raw", "data"), qcowWith("base.img"), qedWith("base.img"),
		[]byte("# Disk DescriptorFile\nRW 8 FLAT \"a\" 0\nparentFileNameHint=\"b\"\n"),
	} {
		f.Add(byte(i), p)
	}
	f.Add(byte(3), append([]byte("KDMV"), make([]byte, 600)...))
	f.Fuzz(func(t *testing.T, which byte, content []byte) {
		h, err := readHeader(bytes.NewReader(content), formats[int(which)%len(formats)])
		if err != nil {
			return
		}
		if h.size < 0 || len(h.parents) > 2 {
			t.Errorf("%+v", h)
		}
		for _, p := range h.parents {
			if len(p.name) > maxDescriptor || strings.ContainsRune(p.name, 0) || p.kind == "" {
				t.Errorf("%+v", p)
			}
		}
	})
}
