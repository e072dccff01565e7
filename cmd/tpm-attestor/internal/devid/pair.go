package devid

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spire-tpm/spire-tpm-attestor/internal/atomicfile"
)

// The files of a DevID's key, and the folder in which a new key waits until both files are in place.
const (
	privName = "devid.priv"
	pubName  = "devid.pub"
	madeName = ".devid-made"
)

// A pair is the two files of a DevID's key in a folder. One file is of no use without the other, so both are made
// in a folder of their own, which is then renamed to madeName as a whole. From then on the key exists: this run, or
// the next if this run is killed, moves the files into place. So a command that is killed leaves either no key, or
// a key that the next run uses.
type pair struct {
	folder string
	root   *os.Root
	// step is called after each step, with what was done. Tests stop there as if the process were killed.
	step func(done string) error
}

// openPair makes the folder if it does not exist. The caller closes the pair.
func openPair(folder string) (*pair, error) {
	const onlyOwner = 0o700
	if err := os.MkdirAll(folder, onlyOwner); err != nil {
		return nil, fmt.Errorf("make the folder: %w", err)
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, fmt.Errorf("open the folder: %w", err)
	}
	p := &pair{folder: folder, root: root, step: func(string) error { return nil }}
	if err := p.checkFolder(); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pair) close() { _ = p.root.Close() } // what was written to it is synced

// checkFolder refuses a folder in which every user can put a key.
func (p *pair) checkFolder() error {
	info, err := p.root.Stat(".")
	if err != nil {
		return fmt.Errorf("look at the folder: %w", err)
	}
	const others = 0o002
	if runtime.GOOS != "windows" && info.Mode()&others != 0 {
		return fmt.Errorf("every user can write to %s, and so put a key of his own there: "+
			"name another folder, or run chmod o-w on it", p.folder)
	}
	return nil
}

// find reports whether the key exists. It completes what an earlier run has begun.
func (p *pair) find() (bool, error) {
	if err := p.settle(); err != nil {
		return false, err
	}
	private, err := p.has(privName)
	if err != nil {
		return false, err
	}
	public, err := p.has(pubName)
	if err != nil {
		return false, err
	}
	if private != public {
		return false, fmt.Errorf("%s has one of %s and %s without the other: "+
			"put both there, or move it away to have a new key made", p.folder, privName, pubName)
	}
	return private, nil
}

// has reports whether something has a name in the folder.
func (p *pair) has(name string) (bool, error) {
	_, err := p.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for the DevID's key: %w", err)
	}
	return true, nil
}

// put writes the files of a new key.
func (p *pair) put(private, public []byte) error {
	err := atomicfile.WriteFolder(filepath.Join(p.folder, madeName), func(made *os.Root) error {
		const onlyOwner = 0o600
		return errors.Join(made.WriteFile(privName, private, onlyOwner), made.WriteFile(pubName, public, onlyOwner))
	})
	if err != nil {
		return fmt.Errorf("write the DevID's key: %w", err)
	}
	if err := p.step("the key is there"); err != nil {
		return err
	}
	return p.settle()
}

// settle moves the files in the folder madeName, if it exists, into place.
func (p *pair) settle() error {
	if made, err := p.has(madeName); err != nil || !made {
		return err
	}
	waiting, err := p.waiting()
	for _, name := range waiting {
		if err == nil {
			err = p.root.Link(filepath.Join(madeName, name), name) // replaces nothing
		}
		if err == nil {
			err = p.step(name + " has its place")
		}
	}
	if err == nil {
		err = atomicfile.SyncFolder(p.root)
	}
	if err != nil {
		return fmt.Errorf("give the key in %s its place: %w", filepath.Join(p.folder, madeName), err)
	}
	return p.remove()
}

// waiting returns the files in the folder madeName that are not in place yet. If another run was faster, the files
// in place are those of another key, and waiting returns none.
func (p *pair) waiting() (names []string, err error) {
	others := 0
	for _, name := range []string{pubName, privName} {
		made, err := p.root.Lstat(filepath.Join(madeName, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // an earlier run has linked it into place and removed it here
		}
		if err != nil {
			return nil, err
		}
		switch there, err := p.root.Lstat(name); {
		case errors.Is(err, fs.ErrNotExist):
			names = append(names, name)
		case err != nil:
			return nil, err
		case !os.SameFile(made, there):
			others++
		}
	}
	if others == 1 {
		return nil, errors.New("a file of another key has it: remove the one or the other")
	}
	return names, nil
}

// remove removes the folder madeName.
func (p *pair) remove() error {
	for _, name := range []string{filepath.Join(madeName, privName), filepath.Join(madeName, pubName), madeName} {
		if err := p.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove what is not needed any more: %w", err)
		}
		if err := p.step(name + " is removed"); err != nil {
			return err
		}
	}
	return nil
}
