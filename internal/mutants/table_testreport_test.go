package mutants

var _ = add("testreport", []mutant{
	{
		what: "the kernel for NetBSD is asked for by a name that testscript answers",
		file: "guest-tests/main_test.go",
		from: `const givenKernel = "netbsd-kernel"`,
		to:   `const givenKernel = "netbsd"`,
		by:   tests{in: "./guest-tests", run: "^TestEveryConditionOfAScriptIsOurs$"},
	},
	{
		what: "a kernel that no guest has booted is no failure",
		file: "guest-tests/main_test.go",
		from: `kernel != "" && u.netbsd.Load() == 0`,
		to:   `kernel != "" && u.netbsd.Load() < 0`,
		by:   tests{in: "./guest-tests", run: "^TestWhatWasAskedForIsDoneOrFails$"},
	},
	{
		what: "a -run that names no row is fine",
		file: "guest-tests/main_test.go",
		from: "\tif u.rows.Load() == 0 {",
		to:   "\tif u.rows.Load() < 0 {",
		by:   tests{in: "./guest-tests", run: "^TestWhatWasAskedForIsDoneOrFails$"},
	},
	{
		what: "a skipped test is not listed",
		file: "internal/testreport/main.go",
		from: "\t\tif e.Action == \"skip\" {\n\t\t\tskips = append(skips, e)\n\t\t} else {",
		to:   "\t\tif e.Action == \"skip\" {\n\t\t\tcontinue\n\t\t} else {",
		by: tests{
			in:  "./internal/testreport",
			run: "^TestWhatOneRunSkipsAndNoOtherRunsIsListedWithItsReason$",
		},
	},
	{
		what: "what another run has run is listed as skipped",
		file: "internal/testreport/main.go",
		from: "if ran[name{e.Package, e.Test}] || slices.Contains",
		to:   "if slices.Contains",
		by: tests{
			in:  "./internal/testreport",
			run: "^TestWhatOneRunSkipsAndNoOtherRunsIsListedWithItsReason$",
		},
	},
	{
		what: "a run without tests is fine",
		file: "internal/testreport/main.go",
		from: "\tif len(ran) == 0 {\n\t\treturn 1, errors.New",
		to:   "\tif false {\n\t\treturn 1, errors.New",
		by:   tests{in: "./internal/testreport", run: "^TestARunWithoutTestsFails$"},
	},
	{
		what: "a skip has no reason",
		file: "internal/testreport/main.go",
		from: "\t\t\tn.Why = why(p.outputs[e.Test])\n",
		to:   "\t\t\tn.Why = \"no reason given\"\n",
		by: tests{
			in:  "./internal/testreport",
			run: "^TestWhatOneRunSkipsAndNoOtherRunsIsListedWithItsReason$",
		},
	},
})
