// Package bootprofiles is a document: a list of boot profiles.
//
// A profile describes what a machine that has booted as it should proves of its boot
// ([sources.Boot]): the values of PCRs, and what its event log says as far as it replays:
//
//	{"version": 1, "serial": 7, "expires": "2030-01-01T00:00:00Z", "list": "fleet", "profiles": [
//	  {"name": "web", "labels": ["boot:ok"], "expires": "2026-12-01T00:00:00Z",
//	   "comment": "PCR 4 changes with the kernel.",
//	   "pcrs": {"sha256": {"0": ["<hex>", "<hex>"], "4": ["<old kernel>", "<new kernel>"]}},
//	   "secureboot": {"enabled": true,
//	     "db": {"only": ["<sha256 of a certificate's DER>"]},
//	     "dbx": {"contains": ["<sha256>"]},
//	     "authorities": {"only": ["<sha256 of a certificate's DER>"]}},
//	   "images": {"only": ["<digest in PCR 4>"]}}]}
//
// Only "profiles" must be there, and in a profile a name and a condition. A profile is met
// when all its conditions hold.
//
// The form is strict, since a condition that is misspelt would otherwise vanish: a member
// that is not known refuses the file, and so does a null. Every object may have a "comment"
// of any kind. What a comment says is nobody's condition.
//
// [Parse] takes the whole of a file or nothing of it, and [Encode] writes one.
package bootprofiles

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// The limits of a file.
const (
	// MaxBytes is how long it may be.
	MaxBytes = 4 << 20
	// MaxProfiles is how many profiles it may have.
	MaxProfiles = 1024
	// MaxValues is how many values a list in it may have.
	MaxValues = 4096
)

// MaxPCR is the last PCR of a PC Client TPM.
const MaxPCR = 23

// Resettable reports whether any program with access to the TPM can reset a PCR (TCG PC Client Platform TPM
// Profile 1.05, 3.6): a profile that pins its value asks for nothing.
func Resettable(pcr int) bool { return pcr == 16 || pcr == 23 }

// The PCRs from which the event log proves a condition.
const (
	PCRImages     = 4
	PCRSecureBoot = 7
)

// Sizes are the lengths of a digest, in bytes, by the names of banks.
func Sizes() map[string]int { return map[string]int{"sha256": 32, "sha384": 48} }

// A Profile describes a machine that has booted as it should. What is nil or empty is no
// condition; a profile has at least one.
type Profile struct {
	// Name is not empty, and no other profile of the file has it.
	Name string
	// Labels are what a machine is called that meets the profile, as in a list of machines.
	Labels []string
	// Expires is from when on no machine meets the profile; zero if it stays.
	Expires time.Time
	// Comments are what the file says to people, by the object that says it: "" is the
	// profile itself; the others are "pcrs", "pcrs.<bank>", "secureboot", "secureboot.db",
	// "secureboot.dbx", "secureboot.authorities" and "images". A comment is one text or
	// several, a line each.
	Comments map[string][]string

	// Bank is the bank of PCRs and Images: "sha256" or "sha384". It is empty if there are
	// neither.
	Bank string
	// PCRs are the PCRs that have to have one of some values, by index.
	PCRs map[int][][]byte
	// SecureBoot is what has to be true of Secure Boot, or nil.
	SecureBoot *SecureBoot
	// Images are the only digests that may be in PCR 4 as images.
	Images [][]byte
}

// SecureBoot is what has to be true of Secure Boot.
type SecureBoot struct {
	// Enabled is whether it has to be enabled or disabled; nil if that does not matter.
	Enabled *bool
	// DB and Authorities are the SHA-256 of the only certificates (DER) that may be in db,
	// and that may have vouched for what was booted.
	DB, Authorities [][]byte
	// DBX are SHA-256 digests, each of which has to be in dbx.
	DBX [][]byte
}

// NeedsLog reports whether a machine must have an event log to meet the profile.
func (p *Profile) NeedsLog() bool { return p.SecureBoot != nil || len(p.Images) > 0 }

// Expired reports whether no machine meets the profile any more.
func (p *Profile) Expired(now time.Time) bool { return !p.Expires.IsZero() && !now.Before(p.Expires) }

// A Document is one whole file. It never changes, so any number of goroutines may use it.
// Parse and New make one.
type Document struct {
	header   list.Header
	comment  []string
	profiles []Profile
	// said is what each profile says, without comments and the order of its lists, by name.
	said map[string]string
}

var _ list.Content[*Document] = (*Document)(nil)

// New returns the document of some profiles, with a comment for the whole file, which may be
// nil. The error says what breaks the rules of a file.
func New(header list.Header, comment []string, profiles []Profile) (*Document, error) {
	if err := header.Check(); err != nil {
		return nil, err
	}
	for i := range profiles {
		if err := profiles[i].check(); err != nil {
			return nil, fmt.Errorf("profiles[%d]: %w", i, err)
		}
	}
	return Parse(Encode(&Document{header: header, comment: comment, profiles: profiles}), Options{})
}

// check returns an error for what Encode cannot write, so that Parse would not see it.
func (p *Profile) check() error {
	if !p.Expires.IsZero() {
		if _, err := list.ParseTime(list.FormatTime(p.Expires)); err != nil {
			return fmt.Errorf("expires: %w", err)
		}
	}
	for of := range p.Comments {
		if !slices.Contains(p.places(), of) {
			return fmt.Errorf("a comment for %.80q, where the profile has nothing", of)
		}
	}
	return nil
}

// Header implements list.Content.
func (d *Document) Header() list.Header { return d.header }

// Comment returns what the file says to people as a whole, or nil.
func (d *Document) Comment() []string { return slices.Clone(d.comment) }

// Profiles returns the profiles, in the order of the file. The caller must not change them.
func (d *Document) Profiles() []Profile { return d.profiles }

// Len implements list.Content.
func (d *Document) Len() int { return len(d.profiles) }

// Warnings implements list.Content.
func (d *Document) Warnings() []string {
	var all []string
	for i := range d.profiles {
		for _, pcr := range slices.Sorted(maps.Keys(d.profiles[i].PCRs)) {
			if Resettable(pcr) && len(all) < list.MaxMistakes {
				all = append(all, fmt.Sprintf("profiles[%d].pcrs: PCR %d can be reset and given a value of choice "+
					"by any program with access to the TPM: its value proves nothing", i, pcr))
			}
		}
	}
	return all
}

// Equal implements list.Content: the same profiles, in any order. Comments do not count.
func (d *Document) Equal(other *Document) bool { return maps.Equal(d.said, other.said) }

// Without implements list.Content.
func (d *Document) Without(older *Document) int {
	gone := 0
	for name := range older.said {
		if _, there := d.said[name]; !there {
			gone++
		}
	}
	return gone
}
