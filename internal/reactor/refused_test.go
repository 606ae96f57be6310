package reactor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// refusedEnv tells a process of the test's which system call it is to be refused.
const refusedEnv = "VDEV_TEST_REFUSED"

// The numbers of io_uring's system calls are the same on all machines.
var ioURing = map[string]int{"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}

// TestAHostThatRefusesAPartOfIOUringIsKnownAtTheStart, so that the threads can be had instead.
func TestAHostThatRefusesAPartOfIOUringIsKnownAtTheStart(t *testing.T) {
	newPool(t, ModeURing) // or it is skipped
	for name, number := range ioURing {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestRefused$")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", refusedEnv, number))
			out, err := cmd.CombinedOutput()
			if strings.Contains(string(out), "no filter") {
				t.Skipf("this host has no seccomp filters: %s", out)
			}
			if want := name + ": operation not permitted; threads: <nil>"; err != nil || !strings.Contains(string(out), want) {
				t.Errorf("%v: %s\nwant %q", err, out, want)
			}
		})
	}
}

// TestRefused is the other process of the test above.
func TestRefused(t *testing.T) {
	number, err := strconv.Atoi(os.Getenv(refusedEnv))
	if err != nil {
		t.Skip("it is no test of its own")
	}
	if err := refuse(uint32(number)); err != nil {
		fmt.Println("no filter:", err)
		return
	}
	if _, err = NewPool(Config{Mode: ModeURing}); err == nil {
		t.Fatal("it has io_uring")
	}
	if !errors.Is(err, syscall.EPERM) {
		t.Error(err)
	}
	p, threads := NewPool(Config{Mode: ModeThreads})
	if threads == nil {
		p.Pick().Do(func() {})
		p.Close()
	}
	fmt.Printf("%v; threads: %v\n", err, threads)
}

// refuse has the kernel answer a system call of this process with EPERM from now on (seccomp(2),
// linux/filter.h).
func refuse(number uint32) error {
	type filter struct {
		code   uint16
		jt, jf uint8
		k      uint32
	}
	const (
		loadNumber  = 0x20 // BPF_LD | BPF_W | BPF_ABS, of struct seccomp_data's first word
		jumpEqual   = 0x15 // BPF_JMP | BPF_JEQ | BPF_K
		answer      = 0x06 // BPF_RET | BPF_K
		allow       = 0x7fff0000
		failWith    = 0x00050000
		noNewPrivs  = 38 // PR_SET_NO_NEW_PRIVS
		setFilter   = 1  // SECCOMP_SET_MODE_FILTER
		allThreads  = 1  // SECCOMP_FILTER_FLAG_TSYNC
		seccompX86  = 317
		seccompMost = 277 // of the machines with the generic table, arm64 for one
	)
	program := []filter{
		{loadNumber, 0, 0, 0},
		{jumpEqual, 0, 1, number},
		{answer, 0, 0, failWith | uint32(syscall.EPERM)},
		{answer, 0, 0, allow},
	}
	prog := struct {
		n      uint16
		filter *filter
	}{uint16(len(program)), &program[0]}
	seccomp := uintptr(seccompMost)
	if runtime.GOARCH == "amd64" {
		seccomp = seccompX86
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, e := syscall.RawSyscall(syscall.SYS_PRCTL, noNewPrivs, 1, 0); e != 0 {
		return e
	}
	if _, _, e := syscall.RawSyscall(seccomp, setFilter, allThreads, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return nil
}
