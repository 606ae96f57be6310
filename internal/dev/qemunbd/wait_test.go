package qemunbd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestWhereAnImageLeadsIsLookedAtBeforeEachStart: a guest of before, or somebody else, may have
// written another header.
func TestWhereAnImageLeadsIsLookedAtBeforeEachStart(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "images")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(folder, "image.qcow2")
	for name, content := range map[string][]byte{
		image: qcow2With("", "", ""), filepath.Join(dir, "outside.img"): make([]byte, 4096),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := newServer(t, Config{File: image, Format: "qcow2"})
	if err := os.WriteFile(image, qcow2With("../outside.img", "raw", ""), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Start(t.Context())
	var refused *ChainError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "backing-chain=files") {
		t.Errorf("it starts with %v", err)
	}
}

// TestAStartThatWaitsSaysForWhat, after a while.
func TestAStartThatWaitsSaysForWhat(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image.qcow2")
	program := filepath.Join(dir, "qemu-nbd")
	for name, content := range map[string][]byte{
		image: qcow2With("base.img", "raw", ""), filepath.Join(dir, "base.img"): make([]byte, 4096),
		program: []byte("#!/bin/sh\nexec sleep 60\n"),
	} {
		if err := os.WriteFile(name, content, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	told := make(chan string, 9)
	s := newServer(t, Config{File: image, Format: "qcow2", Program: program, Log: func(text string) {
		told <- text
		cancel()
	}})
	if _, err := s.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("the start ends with %v", err)
	}
	select {
	case text := <-told:
		if !strings.Contains(text, image) || !strings.Contains(text, "base.img") {
			t.Errorf("it says %q, want the image and where it leads to", text)
		}
	default:
		t.Error("nothing was said")
	}
}
