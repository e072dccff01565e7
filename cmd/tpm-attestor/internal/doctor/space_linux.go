package doctor

import (
	"math"

	"golang.org/x/sys/unix"
)

// spaceIn returns how much room the file system of a folder has.
func spaceIn(folder string) (space, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(folder, &s); err != nil {
		return space{}, err
	}
	free := space{true, s.Bavail * uint64(s.Bsize), s.Ffree}
	if s.Files == 0 { // the file system does not count them
		free.files = math.MaxUint64
	}
	return free, nil
}
