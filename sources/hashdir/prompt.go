package hashdir

import (
	"context"
	"errors"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// errWouldWait is the error of a directory that is looked into in memory alone
// where that does not have the answer.
var errWouldWait = errors.New("not in memory")

// A volume is a file system by its device (stat(2), st_dev).
type volume struct {
	device uint64
	// local says that the kernel's memory of it is right: nobody but this machine
	// changes it, and no server and no process is behind it.
	local bool
}

// CheckNow implements [sources.Prompt]. It answers where the kernel has in memory
// what Check would look for: on a file system of type ext4, XFS or F2FS on a device
// of this machine, where an entry is empty or there is none. That is how most
// entries are looked for the second time. What is in a file, whatever the kernel
// does not have at hand, and all that is wrong, is left to Check, so that it reads
// no disk, asks no server and cannot hang.
func (s *Source) CheckNow(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	names, ok := entryNames(ev.EKHash)
	if !ok || ctx.Err() != nil {
		return sources.Verdict{}, sources.ErrWouldWait
	}
	v, err := s.attempt(names, s.openLocal)
	if err != nil {
		return sources.Verdict{}, sources.ErrWouldWait
	}
	return v, nil
}

// openLocal opens a directory in memory where it is known to be on a local volume.
func (s *Source) openLocal(path string) (directory, error) {
	dir, device, err := openCached(path)
	if err != nil {
		return nil, err
	}
	v := s.volume.Load()
	if v != nil && v.device == device && v.local {
		return dir, nil
	}
	dir.close()
	if v == nil || v.device != device {
		s.moved.Store(true)
	}
	return nil, errWouldWait
}

// learnVolume looks which volume the directory is on, where CheckNow has found it on another one
// than before.
func (s *Source) learnVolume() {
	if !s.moved.Load() || !s.moved.CompareAndSwap(true, false) {
		return
	}
	if v, err := volumeAt(s.path); err == nil {
		s.volume.Store(&v)
	}
}
