package mutants

var _ = add("disk", []mutant{
	{
		what: "no file is looked at",
		file: "internal/dev/vnd/failures.go",
		from: `if e := f.Known(identity); e != 0 || f.dir == "" {`,
		to:   "if e := f.Known(identity); true {",
		by:   tests{in: "./internal/dev/vnd", run: "^TestWhatIsRecordedIsKnownToASuccessor$"},
	},
	{
		what: "no file is written",
		file: "internal/dev/vnd/failures.go",
		from: "\t\tdone <- f.write(identity, failure{",
		to:   "\t\t_ = f.write\n\t\tdone <- error(nil)\n\t\tfunc(failure) {}(failure{",
		by:   tests{in: "./internal/dev/vnd", run: "^TestWhatIsRecordedIsKnownToASuccessor$"},
	},
	{
		what: "what was recorded is not known to who recorded it",
		file: "internal/dev/vnd/failures.go",
		from: "\tf.note(identity, e)\n\tif f.dir == \"\" {",
		to:   "\tif f.dir == \"\" {",
		by:   tests{in: "./internal/dev/vnd", run: "^TestAFailureThatCannotBeRecordedIsTold$"},
	},
	{
		what: "what was forgotten stays in the folder",
		file: "internal/dev/vnd/failures.go",
		from: "\t\tif err := os.Remove(f.file(identity)); err != nil",
		to:   "\t\tif err := error(nil); err != nil",
		by:   tests{in: "./internal/dev/vnd", run: "^TestWhatIsRecordedIsKnownToASuccessor$"},
	},
	{
		what: "what a successor will know is forgotten",
		file: "internal/dev/vnd/failures.go",
		from: "&& !errors.Is(err, fs.ErrNotExist) {\n\t\t\treturn 0, err\n\t\t}",
		to:   "&& !errors.Is(err, fs.ErrNotExist) {\n\t\t\t_ = err\n\t\t}",
		by:   tests{in: "./internal/dev/vnd", run: "^TestARecordThatCannotBeRemovedIsNotForgotten$"},
	},
	{
		what: "a record that cannot be read is none",
		file: "internal/dev/vnd/failures.go",
		from: "\te := devsw.EIO\n",
		to:   "\te := devsw.Errno(0)\n",
		by:   tests{in: "./internal/dev/vnd", run: "^TestARecordThatCannotBeReadIsOneOfEIO$"},
	},
	{
		what: "a folder that cannot be searched has a record of each image",
		file: "internal/dev/vnd/failures.go",
		from: "\t\t\tf.log(fmt.Errorf(\"whether there is a record is not known: %w\", statErr))\n\t\t\treturn 0\n",
		to:   "\t\t\t_ = statErr\n",
		by:   tests{in: "./internal/dev/vnd", run: "^TestAFolderThatCannotBeSearchedHasNoRecords$"},
	},
	{
		what: "that a failure cannot be recorded is not told",
		file: "internal/dev/vnd/failures.go",
		from: "\t\tif err != nil {\n\t\t\tf.log(err)\n\t\t}\n",
		to:   "\t\t_ = err\n",
		by:   tests{in: "./internal/dev/vnd", run: "^TestAFailureThatCannotBeRecordedIsTold$"},
	},
})
