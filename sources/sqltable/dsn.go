package sqltable

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// maxDSN is the longest file of a DSN, in bytes.
const maxDSN = 16 << 10

// A dsnFile is a data source name and the file that it was read from. It is
// never part of an error or a log: it holds the password.
type dsnFile struct {
	text string
	is   fileID
}

// A fileID tells a file from what it was before.
type fileID struct {
	device, inode uint64
	size          int64
	modified      time.Time
	changed       syscall.Timespec
}

func idOf(info fs.FileInfo) fileID {
	id := fileID{size: info.Size(), modified: info.ModTime()}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		id.device, id.inode, id.changed = uint64(s.Dev), s.Ino, s.Ctim //nolint:unconvert // not on all systems
	}
	return id
}

// readDSN reads the file unless it is as it was.
func readDSN(path string, last dsnFile) (dsnFile, error) {
	info, err := os.Stat(path)
	if err != nil {
		return dsnFile{}, fmt.Errorf("read the DSN: %w", err)
	}
	id := idOf(info)
	if last.text != "" && id == last.is {
		return last, nil
	}
	content, err := smallfile.Read(path, maxDSN)
	if err != nil {
		return dsnFile{}, fmt.Errorf("read the DSN: %w", err)
	}
	text := strings.TrimSpace(string(content))
	if text == "" || strings.ContainsAny(text, "\x00\n\r") {
		return dsnFile{}, fmt.Errorf("there is no DSN in %q: write one line", path)
	}
	return dsnFile{text, id}, nil
}
