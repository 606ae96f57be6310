package disk

import "vdev/devsw"

// Ioctl answers the commands that ask for a disk's properties: DIOCGMEDIASIZE, DIOCGSECTORSIZE, DIOCGDISKINFO. EINVAL where
// data is not what the command wants, ENOTTY for any other command.
func Ioctl(cmd devsw.Cmd, data any, info devsw.DiskInfo) error {
	switch cmd {
	case devsw.DIOCGMEDIASIZE:
		return answer(data, info.Size)
	case devsw.DIOCGSECTORSIZE:
		return answer(data, info.SectorSize)
	case devsw.DIOCGDISKINFO:
		return answer(data, info)
	}
	return devsw.ENOTTY
}

// Grown answers DIOCGROW, whose data is nil or where the size goes.
func Grown(data any, size int64) error {
	if data == nil {
		return nil
	}
	return answer(data, size)
}

func answer[T any](data any, v T) error {
	p, ok := data.(*T)
	if !ok || p == nil {
		return devsw.EINVAL
	}
	*p = v
	return nil
}
