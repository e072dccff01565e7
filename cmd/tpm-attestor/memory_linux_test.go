//go:build !race

package main

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// A delivery list of a million machines becomes a list on a small server: in no more memory
// than 8 times the hashes, as a server takes to load one.
func TestBuildMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("a million rows")
	}
	const bar, n = 8, 1_000_000
	for _, kind := range []string{"csv", "ndjson"} {
		dir := t.TempDir()
		in, out := filepath.Join(dir, "in."+kind), filepath.Join(dir, "out.json")
		if err := writeRows(in, kind, n); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "tpm-attestor", "list", "build", in, "--to", out)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		if !ok {
			t.Fatal("no usage")
		}
		times := float64(usage.Maxrss<<10) / (32 * n)
		if t.Logf("%s: %.2f times the hashes", kind, times); times > bar {
			t.Errorf("%s: %.2f times the hashes, more than %d", kind, times, bar)
		}
	}
}

// writeRows writes a file with n machines, each with a name and labels.
func writeRows(path, kind string, n int) error {
	row := "%x,machine-%d,rack:%d env:prod\n"
	if kind == "ndjson" {
		row = `{"hash": "%x", "name": "machine-%d", "labels": ["rack:%d", "env:prod"]}` + "\n"
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(file)
	if kind == "csv" {
		_, _ = w.WriteString("hash,name,labels\n") // Flush returns the error
	}
	random := rand.NewChaCha8([32]byte{1})
	for i := range n {
		var hash [32]byte
		_, _ = random.Read(hash[:]) // never fails
		_, _ = fmt.Fprintf(w, row, hash, i, i%1000)
	}
	return errors.Join(w.Flush(), file.Close())
}
