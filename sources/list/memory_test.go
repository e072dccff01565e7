package list_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/file"
)

// reloadList is the variable that makes a process of the test binary do nothing but
// load the list that it names, again and again.
const reloadList = "LIST_TEST_RELOAD"

// reload loads a list of EK hashes from a file five times, each time a changed one,
// while the list before is being served, and prints the peak of the memory that the
// process has had, each time.
func reload(path string) error {
	o, err := file.New(file.Config{Path: path})
	if err != nil {
		return err
	}
	l, err := list.New(func(data []byte) (*ekhashes.Document, error) {
		return ekhashes.Parse(data, ekhashes.Options{})
	}, o, list.Config{})
	if err != nil {
		return err
	}
	for range 5 {
		if err := l.Load(context.Background()); err != nil {
			return err
		}
		peak, err := peakMemory()
		if err != nil {
			return err
		}
		fmt.Println(l.Status().Entries, peak)
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		if _, err := f.WriteString("\n"); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// peakMemory returns the peak of the resident memory of this process.
func peakMemory() (int, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			return n << 10, err
		}
	}
	return 0, errors.New("no VmHWM in /proc/self/status")
}

// A reload takes no more memory than is documented: 8 times the hashes, including the bytes of the
// list and the list that is being served meanwhile.
func TestPeakMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has memory of its own: the bar holds without it")
	}
	const bar = 8
	const n = 500_000
	text, json := hashes(n)
	for name, data := range map[string][]byte{"text": text, "JSON": json} {
		path := filepath.Join(t.TempDir(), "list")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), reloadList+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(bytes.NewReader(out))
		for i := 1; lines.Scan(); i++ {
			var entries, peak int
			if _, err := fmt.Sscan(lines.Text(), &entries, &peak); err != nil || entries != n {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
			times := float64(peak) / (32 * n)
			if t.Logf("%s, load %d: %.2f times the hashes", name, i, times); times > bar {
				t.Errorf("%s, load %d: %.2f times the hashes, more than %d", name, i, times, bar)
			}
		}
	}
}

// hashes returns a list of so many machines in both of its forms.
func hashes(n int) (text, json []byte) {
	random := rand.NewChaCha8([32]byte{1})
	json = append(json, `{"keys": [`...)
	for i := range n {
		var h [32]byte
		random.Read(h[:])
		text = append(hex.AppendEncode(text, h[:]), '\n')
		if i > 0 {
			json = append(json, ",\n"...)
		}
		json = append(hex.AppendEncode(append(json, '"'), h[:]), '"')
	}
	return text, append(json, "]}"...)
}
