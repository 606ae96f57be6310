package mutants

var _ = add("disk", []mutant{
	{
		what: "no file is looked at",
		file: "devsw/disk/failures.go",
		from: `if e := f.Known(identity); e != 0 || f.dir == "" {`,
		to:   "if e := f.Known(identity); true {",
		by:   tests{in: "./devsw/disk", run: "^TestWhatIsRecordedIsKnownToASuccessor$"},
	},
	{
		what: "no file is written",
		file: "devsw/disk/failures.go",
		from: "\t\tdone <- f.write(identity, failure{",
		to:   "\t\t_ = f.write\n\t\tdone <- error(nil)\n\t\tfunc(failure) {}(failure{",
		by:   tests{in: "./devsw/disk", run: "^TestWhatIsRecordedIsKnownToASuccessor$"},
	},
	{
		what: "what was recorded is not known to who recorded it",
		file: "devsw/disk/failures.go",
		from: "\tf.note(identity, e)\n\tif f.dir == \"\" {",
		to:   "\tif f.dir == \"\" {",
		by:   tests{in: "./devsw/disk", run: "^TestAFailureThatCannotBeRecordedIsTold$"},
	},
	{
		what: "what was forgotten stays in the folder",
		file: "devsw/disk/failures.go",
		from: "\t\tif err := os.Remove(f.file(identity)); err != nil",
		to:   "\t\tif err := error(nil); err != nil",
		by:   tests{in: "./devsw/disk", run: "^TestWhatIsRecordedIsKnownToASuccessor$"},
	},
	{
		what: "what a successor will know is forgotten",
		file: "devsw/disk/failures.go",
		from: "&& !errors.Is(err, fs.ErrNotExist) {\n\t\t\treturn 0, err\n\t\t}",
		to:   "&& !errors.Is(err, fs.ErrNotExist) {\n\t\t\t_ = err\n\t\t}",
		by:   tests{in: "./devsw/disk", run: "^TestARecordThatCannotBeRemovedIsNotForgotten$"},
	},
	{
		what: "a record that cannot be read is none",
		file: "devsw/disk/failures.go",
		from: "\te := devsw.EIO\n",
		to:   "\te := devsw.Errno(0)\n",
		by:   tests{in: "./devsw/disk", run: "^TestARecordThatCannotBeReadIsOneOfEIO$"},
	},
	{
		what: "a folder that cannot be searched has a record of each image",
		file: "devsw/disk/failures.go",
		from: "\t\t\tf.log(fmt.Errorf(\"whether there is a record is not known: %w\", statErr))\n\t\t\treturn 0\n",
		to:   "\t\t\t_ = statErr\n",
		by:   tests{in: "./devsw/disk", run: "^TestAFolderThatCannotBeSearchedHasNoRecords$"},
	},
	{
		what: "that a failure cannot be recorded is not told",
		file: "devsw/disk/failures.go",
		from: "\t\tif err != nil {\n\t\t\tf.log(err)\n\t\t}\n",
		to:   "\t\t_ = err\n",
		by:   tests{in: "./devsw/disk", run: "^TestAFailureThatCannotBeRecordedIsTold$"},
	},
})
