// Package selfinstall copies the running program into the folder from which SPIRE starts it. A container image
// that holds nothing but a plugin has no cp.
package selfinstall

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spire-tpm/spire-tpm-attestor/internal/atomicfile"
)

// Into copies this program into a folder under a name, and returns the path of the copy. A file of that name is
// replaced atomically. Every user may run the copy.
func Into(folder, name string) (string, error) {
	info, err := os.Stat(folder)
	if err == nil && !info.IsDir() {
		err = errors.New("it is not a folder: name the one that plugin_cmd names a file in")
	}
	if err != nil {
		return "", fmt.Errorf("install %s into %q: %w", name, folder, err)
	}
	path := filepath.Join(folder, name)
	if err := atomicfile.WriteProgram(path, copySelf); err != nil {
		return "", fmt.Errorf("install %s: %w", name, err)
	}
	return path, nil
}

func copySelf(w io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	program, err := os.Open(self) //nolint:gosec // G304: this program
	if err != nil {
		return err //nolint:wrapcheck // it names the program
	}
	defer program.Close()
	_, err = io.Copy(w, program)
	return err //nolint:wrapcheck // it names the copy
}
