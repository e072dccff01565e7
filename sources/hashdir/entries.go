package hashdir

import (
	"context"
	"math"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Entries calls each for every entry of the directory at path, as Check would find it, in no
// particular order. The path that is passed to each is relative to the directory. If its err is not
// nil, the entry cannot be used, and a source with that entry cannot tell about the machine. A
// machine may have two entries.
//
// The warnings are about names that look like entries but are not, and about what is doubtful in
// entries; others is the number of other names. The error says why the directory could not be read,
// or that ctx has ended.
func Entries(
	ctx context.Context, path string, each func(path string, hash sources.EKHash, attrs sources.Attributes, err error),
) (warnings []string, others int, err error) {
	dir, err := openDirectory(path)
	if err != nil {
		return nil, 0, explain(err)
	}
	defer func() { _ = dir.Close() }()
	found := &scan{maxScanned: math.MaxInt, maxOpened: math.MaxInt}
	found.each = func(path string, attrs sources.Attributes, err error) {
		hash, _ := sources.ParseEKHash(path[len(path)-hashLen:]) // cannot fail: entry has checked the digits
		each(path, hash, attrs, explain(err))
	}
	if err := found.folders(ctx, dir, ""); err != nil {
		return nil, 0, explain(err)
	}
	slices.Sort(found.warnings)
	return found.warnings, found.others, nil
}
