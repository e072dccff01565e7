package input_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
)

// A configuration that is too long is refused. If it were cut off instead, the rest of its
// rules would be missing.
func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if _, err := input.Read(file, nil, 3); err == nil {
		t.Error("a missing file was read")
	}
	if err := os.WriteFile(file, []byte("four"), 0o600); err != nil {
		t.Fatal(err)
	}
	if content, err := input.Read(file, nil, 4); err != nil || string(content) != "four" {
		t.Errorf("%q, %v", content, err)
	}
	if content, err := input.Read(file, nil, 3); err == nil || content != nil {
		t.Errorf("%q", content)
	}
	if content, err := input.Read("-", strings.NewReader("in"), 4); err != nil || string(content) != "in" {
		t.Errorf("%q, %v", content, err)
	}
}
