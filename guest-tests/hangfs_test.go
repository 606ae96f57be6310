package guesttests

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"vdev/internal/test/hangfs"
)

// mountHanging is "hangfs [-direct] [-writeback] [-interrupt] FOLDER": the folder shows the files
// of FOLDER.files through a FUSE file system that can be told to stop answering. The script is
// skipped where there can be none.
func mountHanging(w *world, args []string) (string, error) {
	var conf hangfs.Config
	flags := flag.NewFlagSet("hangfs", flag.ContinueOnError)
	flags.BoolVar(&conf.Direct, "direct", false, "")
	flags.BoolVar(&conf.Writeback, "writeback", false, "")
	flags.BoolVar(&conf.Interrupt, "interrupt", false, "")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	name := flags.Arg(0)
	if flags.NArg() != 1 || w.hanging[name] != nil {
		return "", errors.New("usage: hangfs [-direct] [-writeback] [-interrupt] FOLDER")
	}
	files, point := filepath.Join(w.dir, name+".files"), filepath.Join(w.dir, name)
	for _, dir := range []string{files, point} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	f, err := hangfs.Mount(files, point, conf)
	if errors.Is(err, hangfs.ErrUnavailable) {
		w.t.Skip(err)
	}
	if err == nil {
		w.hanging[name] = f
	}
	return "", err
}

// hangingKinds reads "FOLDER KIND...".
func (w *world) hangingKinds(args []string) (*hangfs.FS, []hangfs.Kind, error) {
	if len(args) == 0 || w.hanging[args[0]] == nil {
		return nil, nil, fmt.Errorf("which folder? not %q", args)
	}
	var kinds []hangfs.Kind
	for _, name := range args[1:] {
		k, err := hangfs.ParseKind(name)
		if err != nil {
			return nil, nil, err
		}
		kinds = append(kinds, k)
	}
	return w.hanging[args[0]], kinds, nil
}

// hold is "hold FOLDER KIND...": requests of these kinds are not answered any more. What the host
// has cached of the files is dropped first, so that reads are requests.
func hold(w *world, args []string) (string, error) {
	f, kinds, err := w.hangingKinds(args)
	if err != nil {
		return "", err
	}
	files, err := os.ReadDir(filepath.Join(w.dir, args[0]+".files"))
	if err != nil {
		return "", err
	}
	for _, file := range files {
		if err := f.Drop(file.Name()); err != nil {
			return "", err
		}
	}
	f.Hold(kinds...)
	return "", nil
}

// letGo is "release FOLDER [KIND...]": requests of these kinds are answered again, without any
// those of all kinds.
func letGo(w *world, args []string) (string, error) {
	f, kinds, err := w.hangingKinds(args)
	if err != nil {
		return "", err
	}
	if len(kinds) == 0 {
		kinds = hangfs.Kinds()
	}
	f.Release(kinds...)
	return "", nil
}

// held is "held FOLDER KIND N": so many requests of that kind are waiting for their answers, or
// soon will be.
func held(w *world, args []string) (string, error) {
	if len(args) != 3 {
		return "", errors.New("usage: held FOLDER KIND N")
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return "", err
	}
	f, kinds, err := w.hangingKinds(args[:2])
	if err != nil {
		return "", err
	}
	ctx, cancel := w.context()
	defer cancel()
	return "", f.Await(ctx, kinds[0], n)
}
