// Package bootprofiles implements a document of package list: a list of boot profiles.
//
// A profile describes what a machine that has booted as intended proves about its boot
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
// Only "profiles" is required, and in a profile a name and at least one condition. A machine meets
// a profile if all its conditions hold.
//
// The format is strict, since a misspelt condition would otherwise be ignored: an unknown member or
// a null is an error. Every object may have a "comment" of any type. Comments are never conditions.
//
// [Parse] accepts a whole file or none of it, and [Encode] writes a file.
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
	// MaxBytes is its maximum size in bytes.
	MaxBytes = 4 << 20
	// MaxProfiles is the maximum number of profiles.
	MaxProfiles = 1024
	// MaxValues is the maximum number of values in any list in it.
	MaxValues = 4096
)

// MaxPCR is the last PCR of a PC Client TPM.
const MaxPCR = 23

// Resettable reports whether any program with access to the TPM can reset a PCR (TCG PC Client
// Platform TPM Profile 1.05, 3.6). A profile that pins the value of such a PCR requires nothing.
func Resettable(pcr int) bool { return pcr == 16 || pcr == 23 }

// The PCRs from which the event log proves a condition.
const (
	PCRImages     = 4
	PCRSecureBoot = 7
)

// Sizes are the lengths of a digest, in bytes, by the names of banks.
func Sizes() map[string]int { return map[string]int{"sha256": 32, "sha384": 48} }

// A Profile describes a machine that has booted as intended. A field that is nil or empty is not a
// condition. A profile has at least one condition.
type Profile struct {
	// Name is not empty, and is unique in the file.
	Name string
	// Labels are the labels of a machine that meets the profile, like the labels in a list of
	// machines.
	Labels []string
	// Expires is the time from which on no machine meets the profile; zero if it does not expire.
	Expires time.Time
	// Comments are the file's comments, by the object that has them: "" is the profile itself; the
	// others are "pcrs", "pcrs.<bank>", "secureboot", "secureboot.db", "secureboot.dbx",
	// "secureboot.authorities" and "images". A comment is one or more lines.
	Comments map[string][]string

	// Bank is the bank of PCRs and Images: "sha256" or "sha384". It is empty if there are
	// neither.
	Bank string
	// PCRs maps the index of a PCR to its allowed values.
	PCRs map[int][][]byte
	// SecureBoot has the conditions for Secure Boot, or is nil.
	SecureBoot *SecureBoot
	// Images are the only digests that may be in PCR 4 as images.
	Images [][]byte
}

// SecureBoot has the conditions for Secure Boot.
type SecureBoot struct {
	// Enabled says whether Secure Boot must be enabled or disabled; nil if that does not matter.
	Enabled *bool
	// DB and Authorities are the SHA-256 hashes of the only certificates (DER) that may be in db,
	// and that may have verified what was booted.
	DB, Authorities [][]byte
	// DBX are SHA-256 digests, all of which must be in dbx.
	DBX [][]byte
}

// NeedsLog reports whether a machine must have an event log to meet the profile.
func (p *Profile) NeedsLog() bool { return p.SecureBoot != nil || len(p.Images) > 0 }

// Expired reports whether the profile has expired.
func (p *Profile) Expired(now time.Time) bool { return !p.Expires.IsZero() && !now.Before(p.Expires) }

// A Document is one whole file, made by Parse or New. It is immutable, and so safe for concurrent
// use.
type Document struct {
	header   list.Header
	comment  []string
	profiles []Profile
	// said is the content of each profile by name, without comments and regardless of the order in
	// its lists.
	said map[string]string
}

var _ list.Content[*Document] = (*Document)(nil)

// New returns a document with the given profiles, and a comment for the whole file, which may be
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

// check returns an error for what Encode cannot write, and so for what Parse would not see.
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

// Comment returns the comment of the whole file, or nil.
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

// Equal implements list.Content. The order of profiles and the comments do not matter.
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
