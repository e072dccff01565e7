// Package boltfile handles the files of bbolt databases that serve as caches: open
// only while they are used, by several processes in turn, whole after a kill, and
// found out where a disk has damaged them.
//
// A database is mapped into memory. So its file is inspected before, as any other
// file is read, and used under a guard against faults. What is replaced as a whole
// is written beside it, as a [Draft], and renamed.
package boltfile
