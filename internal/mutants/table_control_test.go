package mutants

import "time"

var _ = add("control", []mutant{
	{
		what: "a request may have anything behind its object",
		file: "internal/control/server.go",
		from: "\t\t\tif _, err = d.Token(); err == nil {\n\t\t\t\terr = errors.New(\"there is more behind the JSON object\")\n\t\t\t}\n",
		to:   "\t\t\terr = io.EOF\n",
		by:   tests{in: "./internal/control", run: "^TestMoreThanOneObjectIsRefused$"},
	},
	{
		what: "a body is waited for for ever",
		file: "internal/control/server.go",
		from: "s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.IdleTimeout = d, d, d",
		to:   "s.http.ReadHeaderTimeout, s.http.IdleTimeout = d, d",
		by: tests{
			in:  "./internal/control",
			run: "^TestAClientThatDoesNotFinishIsLetGo$/^half_a_body$",
		},
	},
	{
		what: "a header is waited for for ever",
		file: "internal/control/server.go",
		from: "s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.IdleTimeout = d, d, d",
		to:   "_ = d",
		by: tests{
			in:  "./internal/control",
			run: "^TestAClientThatDoesNotFinishIsLetGo$/^half_a_header$",
		},
	},
	{
		what: "a body that does not come has no cause",
		file: "internal/control/server.go",
		from: "\t\t\t\terr = fmt.Errorf(\"it has not come within %v\", s.patience)\n",
		to:   "\t\t\t\t_ = s\n",
		by: tests{
			in:  "./internal/control",
			run: "^TestAClientThatDoesNotFinishIsLetGo$/^half_a_body$",
		},
	},
	{
		what: "who does not read its answer is waited for for ever",
		file: "internal/control/server.go",
		from: "\t_ = w.out.SetWriteDeadline(time.Now().Add(w.patience))\n\treturn w.out.Flush()\n",
		to:   "\treturn w.out.Flush()\n",
		and:  []edit{{"internal/control/server.go", "\t_ = w.out.SetWriteDeadline(time.Now().Add(w.patience))\n\treturn w.ResponseWriter.Write(p)\n", "\treturn w.ResponseWriter.Write(p)\n"}},
		by: tests{
			in:      "./internal/control",
			run:     "^TestWhoDoesNotReadTheTraceIsLetGo$",
			timeout: 60 * time.Second,
		},
	},
	{
		what: "any number of clients may follow the trace",
		file: "internal/control/server.go",
		from: "staying: make(chan struct{}, maxStaying)",
		to:   "staying: make(chan struct{}, 1<<16)",
		by:   tests{in: "./internal/control", run: "^TestClientsHaveABound$"},
	},
	{
		what: "any number of clients is connected",
		file: "internal/control/server.go",
		from: "s.http.Serve(limitConns(ln, maxConns))",
		to:   "s.http.Serve(ln)",
		by:   tests{in: "./internal/control", run: "^TestAClientBeyondTheBoundWaitsUntilOneHasGone$"},
	},
	{
		what: "a client that has gone keeps its place",
		file: "internal/control/limit.go",
		from: "\tc.once.Do(func() { <-c.l.conns })\n",
		to:   "",
		by: tests{
			in:      "./internal/control",
			run:     "^TestAClientBeyondTheBoundWaitsUntilOneHasGone$",
			timeout: 60 * time.Second,
		},
	},
})
