package vnd

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"vdev/devsw"
	"vdev/internal/dev/imagefile"
	"vdev/internal/sys"
)

// probeSize is what is read to find out what the host does not say, in bytes.
const probeSize = 4096

// geometry is what an image is like, as far as transfers care. All in bytes.
type geometry struct {
	size      int64 // of the disk
	memAlign  int64 // addresses of memory; 1 without O_DIRECT
	offAlign  int64 // offsets in the image, and lengths; 1 without O_DIRECT
	zeroAlign int64 // ranges given to the host to be zeroed or discarded
}

// geometry looks at an image that has just been opened. EINVAL where it cannot be used with this
// Config.
func (sc *softc) geometry(img *imagefile.File) (g geometry, err error) {
	g = geometry{memAlign: 1, offAlign: 1, zeroAlign: 1}
	if sc.conf.Direct {
		if g.memAlign, g.offAlign, err = directAlign(img); err != nil {
			return g, err
		}
		g.zeroAlign = g.offAlign
	}
	if img.Block {
		sector, err := sys.BlockSectorSize(img.FD.Int())
		if err != nil {
			return g, imagefile.PathError(img.Path, err)
		}
		g.zeroAlign = max(g.zeroAlign, sector)
	}
	g.size, err = diskSize(img.Path, img.Size, sc.sector, g.offAlign, sc.conf.ReadOnly)
	return g, err
}

// diskSize gives the size of the disk that an image of length bytes makes, in bytes.
func diskSize(path string, length, sector, offAlign int64, readOnly bool) (int64, error) {
	size := (length + devsw.DEVBSIZE - 1) &^ (devsw.DEVBSIZE - 1) &^ (sector - 1)
	if !readOnly && size&(offAlign-1) != 0 {
		return 0, fmt.Errorf("%s: has %d bytes, not a multiple of the %d that direct I/O works in here: %w",
			path, length, offAlign, devsw.EINVAL)
	}
	return size, nil
}

// directAlign finds out what O_DIRECT transfers have to be aligned to.
func directAlign(img *imagefile.File) (mem, off int64, err error) {
	fd := img.FD.Int()
	mem, off, known, err := sys.DirectAlign(fd)
	switch {
	case err != nil:
		return 0, 0, imagefile.PathError(img.Path, err)
	case known && off == 0:
		return 0, 0, fmt.Errorf("%s: direct I/O is not to be had: %w", img.Path, devsw.EINVAL)
	case known && (off&(off-1) != 0 || mem&(mem-1) != 0 || off > bounceChunk):
		return 0, 0, fmt.Errorf("%s: direct I/O would have to be aligned to %d bytes, and in memory to %d: %w",
			img.Path, off, mem, devsw.EINVAL)
	case known:
		return max(mem, 1), off, nil
	}
	// The smallest aligned read that the host takes tells: sectors of 512 bytes, or of 4096 as the
	// next larger in use.
	if _, errno := sys.Preadv(fd, [][]byte{sys.AlignedBuffer(devsw.DEVBSIZE, probeSize)}, 0); errno == 0 {
		return devsw.DEVBSIZE, devsw.DEVBSIZE, nil
	}
	if _, errno := sys.Preadv(fd, [][]byte{sys.AlignedBuffer(probeSize, probeSize)}, 0); errno != 0 {
		return 0, 0, imagefile.PathError(img.Path, fmt.Errorf("direct I/O: read: %w", errno))
	}
	return probeSize, probeSize, nil
}

// pinned tells whether the file system makes the transfers of a file direct that nobody asked to
// be, as a FUSE server may (FOPEN_DIRECT_IO) and mounts without a cache do: then they use the pages
// of the memory that they are given, and not its addresses. What has been read is in the page cache
// otherwise. Where that cannot be told they count as direct.
func pinned(fd int) bool {
	sys.DropCached(fd, 0, probeSize)
	if n, e := sys.Cached(fd, 0, probeSize); e != 0 || n != 0 {
		return true // what is there already, and stays, tells nothing
	}
	if _, e := sys.Preadv(fd, [][]byte{make([]byte, probeSize)}, 0); e != 0 {
		return true
	}
	n, e := sys.Cached(fd, 0, probeSize)
	return e != 0 || n == 0
}

// Info implements disk.Disk: it looks at the image, without taking its locks.
func (sc *softc) Info() (devsw.DiskInfo, error) {
	img, err := imagefile.Open(sc.conf.Path, sys.OpenFlags{Direct: sc.conf.Direct})
	if err != nil {
		return devsw.DiskInfo{}, err
	}
	defer img.FD.Close()
	g, err := sc.geometry(img)
	if err != nil {
		return devsw.DiskInfo{}, err
	}
	if _, err := sc.recognise(img); err != nil {
		return devsw.DiskInfo{}, err
	}
	return describe(img, sc.conf, sc.sector, g), nil
}

// describe says what a disk on an image can do.
func describe(img *imagefile.File, conf Config, sector int64, g geometry) devsw.DiskInfo {
	info := devsw.DiskInfo{
		Size:        g.size,
		SectorSize:  uint32(sector),
		ReadOnly:    conf.ReadOnly,
		Discard:     !conf.ReadOnly && conf.Discard,
		WriteZeroes: !conf.ReadOnly,
		Pinned:      conf.Direct && !conf.Bounce,
	}
	if img.Block {
		// What the host does not tell stays unknown.
		info.OptIOSize, _ = sys.BlockOptIO(img.FD.Int())
		info.Rotational, _ = sys.BlockRotational(img.FD.Int())
		info.Discard = info.Discard && queueLimit(img.Stat, "discard_max_bytes") > 0
		info.DiscardAlign = uint32(queueLimit(img.Stat, "discard_granularity"))
	} else {
		info.DiscardAlign = uint32(img.Stat.BlockSize)
	}
	return info
}

// queueLimit reads one of the limits that the host's sysfs has for a block device; 0 where it has
// not.
func queueLimit(st sys.FileStat, name string) int64 {
	// A partition has the queue of its disk, one folder up.
	for _, queue := range []string{"queue", "../queue"} {
		text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/%s/%s", st.Major, st.Minor, queue, name))
		if err == nil {
			n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			return n
		}
	}
	return 0
}
