package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"vdev/internal/bench/load"
	"vdev/internal/child"
)

// fioArgs are what has fio do on a file what j has a front-end do. Invalidating the page cache
// before would take away what is held there, and a map of the blocks that were done would cost time
// that the front-end does not spend either.
func fioArgs(engine, file string, direct bool, j load.Job) []string {
	args := []string{"--name=bench", "--filename=" + file, "--rw=" + string(j.Pattern), fmt.Sprintf("--bs=%d", j.BlockSize),
		"--ioengine=" + engine, fmt.Sprintf("--iodepth=%d", j.Depth), "--norandommap", "--invalidate=0",
		"--disable_slat=1", "--clat_percentiles=0", "--lat_percentiles=1", "--time_based", fmt.Sprintf("--ramp_time=%dms", j.Warmup.Milliseconds()), fmt.Sprintf("--runtime=%dms", j.Length.Milliseconds()),
		"--output-format=json+"}
	if j.Pattern.Reads() && j.Pattern.Writes() {
		args = append(args, fmt.Sprintf("--rwmixread=%d", j.ReadPercent))
	}
	if direct {
		args = append(args, "--direct=1")
	}
	return args
}

// runFio does a job on a file by fio, on one core.
func runFio(ctx context.Context, o options, engine, file string, direct bool, j load.Job) (load.Result, error) {
	var stdout bytes.Buffer
	p, err := child.Run(ctx, child.Program{Args: append([]string{o.fio}, fioArgs(engine, file, direct, j)...), CPU: child.On(o.serverCPU), Stdout: &stdout})
	if err != nil {
		return load.Result{}, fmt.Errorf("%w %s", err, bytes.TrimSpace(stdout.Bytes()))
	}
	r, err := parseFio(stdout.Bytes())
	if err != nil {
		return r, p.Error(err)
	}
	return r, nil
}

// fioOutput is what is needed of fio's --output-format=json+.
type fioOutput struct {
	Jobs []struct {
		Error int     `json:"error"`
		Read  fioSide `json:"read"`
		Write fioSide `json:"write"`
		// per cent of the job's time; the kernel's own threads do not count
		UserCPU  float64 `json:"usr_cpu"`
		SysCPU   float64 `json:"sys_cpu"`
		Switches uint64  `json:"ctx"`
	} `json:"jobs"`
}

type fioSide struct {
	Requests uint64 `json:"total_ios"`
	Bytes    uint64 `json:"io_bytes"`
	Runtime  uint64 `json:"runtime"` // ms
	Latency  struct {
		Bins map[string]int64 `json:"bins"` // by ns
	} `json:"lat_ns"` // from before it is submitted: what is in memory is read by then
}

// parseFio reads what fio says of one job, in JSON. Before that it may print warnings.
func parseFio(text []byte) (load.Result, error) {
	r := load.Result{Latency: load.NewLatency(), Waited: math.NaN()}
	var out fioOutput
	if err := json.Unmarshal(text[max(bytes.IndexByte(text, '{'), 0):], &out); err != nil {
		return r, fmt.Errorf("fio's output: %w", err)
	}
	if len(out.Jobs) != 1 {
		return r, fmt.Errorf("fio's output has %d jobs, not one", len(out.Jobs))
	}
	j := &out.Jobs[0]
	if j.Error != 0 {
		return r, fmt.Errorf("fio ended with error %d", j.Error)
	}
	r.Requests, r.Bytes = j.Read.Requests+j.Write.Requests, j.Read.Bytes+j.Write.Bytes
	r.Length = time.Duration(max(j.Read.Runtime, j.Write.Runtime)) * time.Millisecond
	if r.Requests == 0 || r.Length == 0 {
		return r, errors.New("fio has done nothing")
	}
	r.Backend = load.Usage{Known: true, CPU: time.Duration((j.UserCPU + j.SysCPU) / 100 * float64(r.Length)), SwitchesKnown: true, Switches: j.Switches}
	for _, side := range []*fioSide{&j.Read, &j.Write} {
		for ns, n := range side.Latency.Bins {
			v, err := strconv.ParseInt(ns, 10, 64)
			if err == nil {
				err = r.Latency.RecordValues(min(max(v, 1), r.Latency.HighestTrackableValue()), n)
			}
			if err != nil {
				return r, fmt.Errorf("fio's latency %q: %w", ns, err)
			}
		}
	}
	return r, nil
}
