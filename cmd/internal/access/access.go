// Package access computes what another user may do with a file, without becoming that user: from the modes, owners
// and groups along the whole path, including links.
//
// It does not consider ACLs, capabilities, security modules, mount options, or what a file server decides.
package access

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Want is what a user wants to do with a file or a folder.
type Want uint8

// The values of Want. They can be combined.
const (
	// Search is to find a file in a folder by its name.
	Search Want = 1
	// Write is to write to a file, or to create, replace and delete files in a folder.
	Write Want = 2
	// Read is to read a file, or to list a folder.
	Read Want = 4
)

// String returns a verb for messages.
func (w Want) String() string {
	switch {
	case w&Write != 0:
		return "write to"
	case w&Read != 0:
		return "read"
	}
	return "search"
}

// bits returns the letters that chmod uses.
func (w Want) bits() string {
	var bits strings.Builder
	for i, letter := range []byte("xwr") {
		if w&(1<<i) != 0 {
			bits.WriteByte(letter)
		}
	}
	return bits.String()
}

// A User is somebody who wants to use files.
type User struct {
	// Name is the name that was given to Lookup.
	Name   string
	uid    uint32
	groups []uint32 // the first is the primary group
}

// Lookup finds a user, with all the groups that the machine knows for that user. who is a user's name, a user's
// number, or the numbers of a user and a group separated by a colon, as for containers. The last form needs no user
// of that number.
func Lookup(who string) (*User, error) {
	if !supported {
		return nil, errors.New("the permissions of another user are not known on this system")
	}
	if uid, gid, ok := numbers(who); ok {
		return &User{who, uid, []uint32{gid}}, nil
	}
	found, err := user.Lookup(who)
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
		found, err = user.LookupId(who)
	}
	if err != nil {
		return nil, fmt.Errorf("there is no user %q on this machine: write <uid>:<gid> of a user elsewhere", who)
	}
	ids, err := found.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("the groups of user %q: %w", who, err)
	}
	u := &User{Name: who}
	if u.uid, err = parse(found.Uid); err != nil {
		return nil, err
	}
	for _, id := range append([]string{found.Gid}, ids...) {
		gid, err := parse(id)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(u.groups, gid) {
			u.groups = append(u.groups, gid)
		}
	}
	return u, nil
}

// numbers reads the form "1000:1000".
func numbers(who string) (uid, gid uint32, ok bool) {
	first, second, ok := strings.Cut(who, ":")
	if !ok {
		return 0, 0, false
	}
	uid, err := parse(first)
	if err != nil {
		return 0, 0, false
	}
	gid, err = parse(second)
	return uid, gid, err == nil
}

func parse(id string) (uint32, error) {
	n, err := strconv.ParseUint(id, 10, 32)
	return uint32(n), err
}

// A DeniedError says what keeps a user from a file.
type DeniedError struct {
	User *User
	Want Want
	// Path is what has the wrong permissions: the file itself, or a folder on the way to it.
	Path string
	info fs.FileInfo
}

func (d *DeniedError) Error() string {
	uid, gid := owner(d.info)
	return fmt.Sprintf("user %s may not %s %s (%v, owner %s, group %s)",
		d.User.Name, d.Want, d.Path, d.info.Mode(), userName(uid), groupName(gid))
}

// Remedy says how to give the user this permission, without giving it to any user outside one group.
func (d *DeniedError) Remedy() string {
	bits := d.Want.bits()
	uid, gid := owner(d.info)
	switch {
	case uid == d.User.uid:
		return fmt.Sprintf("chmod u+%s %s", bits, d.Path)
	case slices.Contains(d.User.groups, gid):
		return fmt.Sprintf("chmod g+%s %s", bits, d.Path)
	}
	return fmt.Sprintf("chgrp %s %s && chmod g+%s %s", groupName(d.User.groups[0]), d.Path, bits, d.Path)
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

// Owns reports whether a file, whose info is of this machine, belongs to the user.
func (u *User) Owns(info fs.FileInfo) bool {
	uid, _ := owner(info)
	return uid == u.uid
}

// maxLinks is how many links are followed; Linux follows as many (path_resolution(7)).
const maxLinks = 40

// May returns nil if the user may do everything in want with what path leads to, and a *DeniedError if not. Any
// other error means that it is not known, because this process may not look or because nothing is there.
func (u *User) May(path string, want Want) error {
	if !filepath.IsAbs(path) {
		folder, err := os.Getwd()
		if err != nil {
			return err
		}
		path = folder + "/" + path // filepath.Join would drop ".." after a link
	}
	at, links := "/", 0
	for names := strings.Split(path, "/"); len(names) > 0; {
		name := names[0]
		names = names[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		if err := u.pass(at); err != nil {
			return err
		}
		next := filepath.Join(at, name)
		info, err := os.Lstat(next)
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return fmt.Errorf("%s: too many links", path)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		names = append(strings.Split(target, "/"), names...)
	}
	return u.check(at, want)
}

// pass returns nil if the user may look up names in a folder.
func (u *User) pass(folder string) error {
	if info, err := os.Lstat(folder); err == nil && !info.IsDir() {
		return fmt.Errorf("%s is not a folder", folder)
	}
	return u.check(folder, Search)
}

// check checks a file that is not a link. The class of permissions that counts is the owner's, the group's or the
// others', whichever applies first, even if a later one grants more (POSIX.1, 4.7).
func (u *User) check(path string, want Want) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if u.uid == 0 { // root may do all of this
		return nil
	}
	uid, gid := owner(info)
	bits := info.Mode().Perm()
	switch {
	case uid == u.uid:
		bits >>= 6
	case slices.Contains(u.groups, gid):
		bits >>= 3
	}
	if missing := want &^ Want(bits&7); missing != 0 {
		return &DeniedError{u, missing, path, info}
	}
	return nil
}
