package hashdir

import (
	"context"
	"errors"
	"time"

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
	local   bool
	learned time.Time
}

// CheckNow implements [sources.Prompt]. It answers where the kernel has in memory
// what Check would look for: on a file system of type ext4, XFS or F2FS on a device
// of this machine, where an entry is empty or there is none. That is how most
// entries are looked for the second time. What is in a file, whatever the kernel
// does not have at hand, and all that is wrong, is left to Check, so that it reads
// no disk, asks no server and cannot hang.
//
// As long as the directory is not known to be on such a file system it makes no
// system call: others may wait for a server whatever they are told.
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

// openLocal opens a directory in memory where it is still on the local volume that it
// was on last.
func (s *Source) openLocal(path string) (directory, error) {
	v := s.volume.Load()
	if v == nil || !v.local {
		return nil, errWouldWait
	}
	dir, device, err := s.openCached(path)
	if err != nil {
		return nil, err
	}
	if device != v.device {
		dir.close()
		s.volume.CompareAndSwap(v, nil)
		return nil, errWouldWait
	}
	return dir, nil
}

// learnAgain is how long a directory that is not on a local volume is taken to be
// where it was.
const learnAgain = time.Minute

// learnVolume looks which volume the directory is on, where that is not known or may
// have become a local one. It may hang where Check may.
func (s *Source) learnVolume() {
	v := s.volume.Load()
	if v != nil && (v.local || time.Since(v.learned) < learnAgain) {
		return
	}
	if now, err := volumeAt(s.path); err == nil {
		now.learned = time.Now()
		s.volume.CompareAndSwap(v, &now)
	}
}
