//go:build !unix

package boltfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// Servers run on Linux. On other systems, the operator's tool does without caches.
var errSystem = fmt.Errorf("caches are not used on this system: %w", errors.ErrUnsupported)

const openFlags = 0

func isLink(error) bool { return false }

func tryLock(*os.File, bool) (bool, error) { return false, errSystem }

func duplicate(*os.File) (*os.File, error) { return nil, errSystem }

func stamp(string, time.Time) error { return errSystem }

func ownerOf(fs.FileInfo) int64 { return -1 }
