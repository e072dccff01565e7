package tpm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/google/go-tpm/tpm2"
)

// The classes of errors with a remedy. An error of neither class is unexpected.
var (
	// ErrSetup means that the error lasts until somebody changes the machine or
	// the configuration.
	ErrSetup = errors.New("the setup must be changed")
	// ErrNotReady means that a later attempt may succeed.
	ErrNotReady = errors.New("the TPM is not ready")
)

// An Error is an error with a remedy. Its text is that of Err, followed by Hint.
type Error struct {
	Class error // ErrSetup or ErrNotReady
	Err   error
	Hint  string
	// Key is the key of the agent plugin's configuration that Hint names, or empty. A command that has a flag
	// instead of the key replaces it in its messages.
	Key string
}

func (e *Error) Error() string { return e.Err.Error() + ": " + e.Hint }

// Unwrap returns the class and the underlying error.
func (e *Error) Unwrap() []error { return []error{e.Class, e.Err} }

// explainOpen says why the device or socket at path could not be opened.
func explainOpen(path string, err error) error {
	// Errors of package os and net name the operation and the path, which this
	// function names itself.
	var number syscall.Errno
	if errors.As(err, &number) {
		err = number
	}
	opened := fmt.Errorf("open TPM %s: %w", path, err)
	e := &Error{Class: ErrSetup, Err: opened}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Class, e.Hint = ErrNotReady, "check that the TPM is enabled and its driver loaded, "+
			"or the software TPM started, and that device names it"
	case number == syscall.EPERM:
		e.Hint = "in a container, pass the device to it (--device " + path + ")"
	case errors.Is(err, fs.ErrPermission):
		e.Hint = permissionHint(path)
	case number == syscall.EBUSY:
		e.Class, e.Hint = ErrNotReady, "another program holds it, such as tpm2-abrmd: "+
			"use /dev/tpmrm0, which programs can share"
	case number == syscall.ECONNREFUSED:
		e.Class, e.Hint = ErrNotReady, "nothing listens on the socket: start the software TPM"
	default:
		return opened
	}
	return e
}

// explainSocket adds a remedy to an error of the socket at path if the peer is a control
// channel, or does not answer.
func explainSocket(path string, err error) error {
	switch {
	case errors.Is(err, errControl):
		return &Error{
			Class: ErrSetup, Err: fmt.Errorf("%s is the control socket of a software TPM", path),
			Key:  "device",
			Hint: "set device to the socket of its commands (swtpm's --server, not --ctrl)" + otherSocket(path),
		}
	case errors.Is(err, errTimeout):
		return &Error{
			Class: ErrNotReady, Err: fmt.Errorf("%s: %w", path, err),
			Hint: "check that nothing else is connected to it, since a software TPM serves one program at a time, " +
				"and that it is the socket of the TPM's commands" + otherSocket(path),
		}
	}
	return err
}

// otherSocket names the other socket in the folder of path, if there is exactly one.
func otherSocket(path string) string {
	const most = 256 // entries of the folder
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return ""
	}
	defer dir.Close()
	entries, _ := dir.ReadDir(most) // an error only costs the hint
	var found []string
	for _, entry := range entries {
		if entry.Type() == fs.ModeSocket && entry.Name() != filepath.Base(path) {
			found = append(found, filepath.Join(filepath.Dir(path), entry.Name()))
		}
	}
	if len(found) != 1 {
		return ""
	}
	return fmt.Sprintf(": probably device = %q", unixPrefix+found[0])
}

// permissionHint says how SPIRE Agent's user gets the permission to open path.
func permissionHint(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "allow SPIRE Agent's user to search its folder"
	}
	gid, ok := gidOf(info)
	if !ok {
		return "allow SPIRE Agent's user to read and write it"
	}
	group := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	const readWrite = 0o060
	if info.Mode().Perm()&readWrite != readWrite || gid == 0 {
		return fmt.Sprintf("it belongs to the group %s with mode %#o: assign it to a group "+
			"for TPM users, such as tss, with a udev rule, and add SPIRE Agent's user to that group",
			group, info.Mode().Perm())
	}
	return fmt.Sprintf("it belongs to the group %s: add SPIRE Agent's user to it "+
		"(usermod -aG %s <user>) and restart the agent", group, group)
}

// A remedy says what to do about a TPM's response code.
type remedy struct {
	code  tpm2.TPMRC
	class error
	hint  string
}

// remedies are for codes that mean the same after every command.
var remedies = [...]remedy{
	{tpm2.TPMRCInitialize, ErrNotReady, "the TPM has not been started: on a machine, the firmware does that; " +
		"start swtpm with --flags startup-clear"},
	{tpm2.TPMRCFailure, ErrSetup, "the TPM's self-test failed: power the machine off and on; " +
		"if that does not help, the TPM is broken"},
	{tpm2.TPMRCLockout, ErrNotReady, "the TPM is locked out after too many wrong passwords: " +
		"wait until it recovers, or reset it with tpm2_dictionarylockout --clear-lockout"},
	{tpm2.TPMRCNVRate, ErrNotReady, "the TPM is limiting writes to its memory: wait"},
	{tpm2.TPMRCRetry, ErrNotReady, "the TPM is busy: check what else is using it"},
	{tpm2.TPMRCTesting, ErrNotReady, "the TPM is still testing itself: wait"},
	{tpm2.TPMRCYielded, ErrNotReady, "the TPM is busy: check what else is using it"},
	{tpm2.TPMRCReboot, ErrSetup, "the TPM is waiting for a restart of the machine"},
	{tpm2.TPMRCUpgrade, ErrSetup, "the TPM is waiting for a firmware upgrade to complete"},
}

// exhausted says what to do about a TPM for which isFull is true.
const exhausted = "other programs have filled the TPM with their keys or sessions: use /dev/tpmrm0, " +
	"whose resource manager gives each program its own space, or flush them (tpm2_flushcontext -t -l -s)"

// isCode reports whether err is one of the response codes.
func isCode(err error, codes ...tpm2.TPMRC) bool {
	return slices.ContainsFunc(codes, func(code tpm2.TPMRC) bool { return errors.Is(err, code) })
}

// explain returns an error that says what the agent was doing when err occurred, and
// what to do about it. The further remedies are for codes whose meaning depends on the
// command.
func explain(doing string, err error, further ...remedy) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", doing, err)
	for _, r := range append(further, remedies[:]...) {
		if errors.Is(err, r.code) {
			return &Error{Class: r.class, Err: err, Hint: r.hint}
		}
	}
	if isFull(err) {
		return &Error{Class: ErrNotReady, Err: err, Hint: exhausted}
	}
	if errors.Is(err, errTimeout) && !errors.Is(err, ErrNotReady) {
		return &Error{Class: ErrNotReady, Err: err, Hint: "check that the TPM, or the software TPM, is running"}
	}
	return err
}
