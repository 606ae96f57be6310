package mutants

var _ = add("devices", []mutant{
	{
		what: "a lower device without a driver is cancelled",
		file: "internal/dev/fault/open.go",
		from: "\tif ref == nil {\n\t\treturn nil // the lower",
		to:   "\tif ref == nil {\n\t\treturn devsw.ENXIO // the lower",
		by: tests{
			in:  "./internal/dev/fault",
			run: "^TestALowerDeviceWithoutADriverIsNotCancelled$",
		},
	},
	{
		what: "a socket that somebody else has bound is removed",
		file: "internal/sys/unixsocket_linux.go",
		from: "errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(now, info)",
		to:   "errors.Is(err, fs.ErrNotExist) || err == nil && now.Mode()&fs.ModeSocket == 0",
		by:   tests{in: "./internal/sys", run: "^TestAClosedListenerRemovesOnlyItsOwnSocket$"},
	},
	{
		what: "without a d_kqfilter a device is none that can be waited for",
		file: "devsw/cdev.go",
		from: "\t\tkn.Activate(-1)\n\t\treturn nil\n",
		to:   "\t\treturn ENODEV\n",
		by:   tests{in: "./devsw", run: "^TestWrappersAnswerFor"},
	},
	{
		what: "without a d_kqfilter any filter is taken",
		file: "devsw/cdev.go",
		from: "\t\tif kn.Filter != EVFILTRead && kn.Filter != EVFILTWrite {\n\t\t\treturn EINVAL\n\t\t}\n",
		to:   "",
		by:   tests{in: "./devsw", run: "^TestWrappersAnswerFor|Kq|Knote"},
	},
	{
		what: "a driver is asked to read no bytes",
		file: "specfs/ops.go",
		from: "\tif u.Resid == 0 {\n\t\treturn nil\n\t}\n\tif n.key",
		to:   "\tif n.key",
		by:   tests{in: "./specfs", run: "^TestNoBytesAreReadOrWritten"},
	},
})
