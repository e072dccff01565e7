package boltfile

import (
	"fmt"
	"os"
	"runtime/debug"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// With opens a locked file as a database, calls use and closes it.
//
// The file was inspected before, but may change while it is mapped: a disk that
// fails and a file that is cut short are then faults in the goroutine that looks
// at it. These, and whatever else panics, are an *UnusableError.
func With(file *os.File, opts bbolt.Options, use func(*bbolt.DB) error) error {
	defer func() {
		// A file that stays mapped keeps its lock beyond its end.
		_ = unix.Flock(int(file.Fd()), unix.LOCK_UN)
		file.Close()
	}()
	opts.OpenFile = func(string, int, os.FileMode) (*os.File, error) { return file, nil }
	opts.Timeout = lockWait // the file is locked: nothing waits
	opts.PageSize = PageSize
	opts.NoStatistics = true
	return catchFaults(func() error {
		db, err := bbolt.Open(file.Name(), 0o600, &opts)
		if err != nil {
			return fmt.Errorf("open the database: %w", err)
		}
		if err := use(db); err != nil {
			_ = db.Close()
			return err
		}
		return db.Close()
	})
}

// catchFaults calls f and makes an error of a fault or another panic. A database
// that f has open then is not closed: what it has locked in itself stays locked,
// and its pages stay mapped.
func catchFaults(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = Damaged("%v", r)
		}
	}()
	return f()
}
