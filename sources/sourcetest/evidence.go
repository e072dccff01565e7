package sourcetest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// NewEvidence returns the evidence of a TPM with a new P-256 EK and without a certificate.
func NewEvidence(tb testing.TB) *sources.Evidence {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("make an EK: %v", err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		tb.Fatalf("marshal the EK: %v", err)
	}
	return &sources.Evidence{EKHash: sha256.Sum256(der), EK: &key.PublicKey}
}

// NewProof returns a proof for ev's EK.
func NewProof(ev *sources.Evidence) *sources.Proof { return &sources.Proof{AK: ev.EK} }

// Proven returns a copy of ev as it is after the challenge, with a proof.
func Proven(ev *sources.Evidence) *sources.Evidence {
	after := *ev
	after.Proof = NewProof(ev)
	return &after
}

// A hostile is evidence that no source may list, whatever it resembles. Package attestor rejects
// all of it, so a source that lists it, or panics, has a hole behind that check.
type hostile struct {
	name string
	ev   *sources.Evidence
}

// hostileEvidence returns evidence of a stranger's TPM that resembles the evidence of a listed
// TPM.
func hostileEvidence(listed, stranger *sources.Evidence) []hostile {
	var all []hostile
	twist := func(name string, f func(ev *sources.Evidence)) {
		ev := *stranger
		f(&ev)
		all = append(all, hostile{name, &ev})
	}
	for i := range listed.EKHash {
		near := listed.EKHash
		near[i] ^= 1
		twist(fmt.Sprintf("the listed EK hash but for one bit of byte %d", i),
			func(ev *sources.Evidence) { ev.EKHash = near })
	}
	twist("an EK hash of zeros", func(ev *sources.Evidence) { ev.EKHash = sources.EKHash{} })
	twist("an EK hash of ones", func(ev *sources.Evidence) {
		ev.EKHash = sources.EKHash(bytes.Repeat([]byte{0xff}, len(ev.EKHash)))
	})
	twist("no EK", func(ev *sources.Evidence) { ev.EK = nil })
	twist("a typed nil as EK", func(ev *sources.Evidence) { ev.EK = (*ecdsa.PublicKey)(nil) })
	twist("an empty EK", func(ev *sources.Evidence) { ev.EK = &ecdsa.PublicKey{} })
	twist("a text as EK", func(ev *sources.Evidence) { ev.EK = listed.EKHash.String() })
	twist("no certificate", func(ev *sources.Evidence) { ev.Certificate = nil })
	twist("an empty certificate", func(ev *sources.Evidence) { ev.Certificate = []byte{} })
	twist("a certificate of garbage", func(ev *sources.Evidence) { ev.Certificate = garbage(listed) })
	twist("a chain of nil", func(ev *sources.Evidence) { ev.Chain = make([][]byte, 16) })
	twist("a chain of garbage", func(ev *sources.Evidence) {
		ev.Chain = nil
		for range 16 {
			ev.Chain = append(ev.Chain, []byte{}, garbage(listed))
		}
	})
	twist("certificates that are not there", func(ev *sources.Evidence) { ev.Certificate, ev.Incomplete = nil, true })
	if c := listed.Certificate; c != nil {
		twist("a listed TPM's certificate in the chain", func(ev *sources.Evidence) {
			ev.Chain = append([][]byte{c}, listed.Chain...)
		})
		twist("a listed TPM's certificate", func(ev *sources.Evidence) { ev.Certificate = c })
	}
	twist("nothing at all", func(ev *sources.Evidence) { *ev = sources.Evidence{} })
	return all
}

// A hostileBoot is a boot that resembles the boot of a listed TPM.
type hostileBoot struct {
	name string
	boot *sources.Boot
}

// hostileBoots returns boots that resemble what boot returns.
func hostileBoots(boot func() *sources.Boot) []hostileBoot {
	all := []hostileBoot{{"no boot", nil}}
	twist := func(name string, f func(b *sources.Boot)) {
		b := boot()
		f(b)
		all = append(all, hostileBoot{name, b})
	}
	other := map[string]string{"sha256": "sha384", "sha384": "sha256"}
	twist("another bank", func(b *sources.Boot) { b.Bank = other[b.Bank] })
	twist("a SHA-1 bank", func(b *sources.Boot) { b.Bank = "sha1" })
	twist("no bank", func(b *sources.Boot) { b.Bank = "" })
	twist("no PCRs", func(b *sources.Boot) { b.PCRs = nil })
	twist("PCRs beside the point", func(b *sources.Boot) { b.PCRs = map[int][]byte{-1: {1}, 24: nil, 1 << 30: {}} })
	twist("nothing at all", func(b *sources.Boot) { *b = sources.Boot{} })
	for pcr := range boot().PCRs {
		value := func(what string, f func(value []byte) []byte) {
			twist(fmt.Sprintf("PCR %d %s", pcr, what), func(b *sources.Boot) {
				b.PCRs[pcr] = f(bytes.Clone(b.PCRs[pcr]))
			})
		}
		value("nil", func([]byte) []byte { return nil })
		value("without its last byte", func(v []byte) []byte { return v[:len(v)-1] })
		value("with a byte behind it", func(v []byte) []byte { return append(v, 0) })
		for _, at := range []int{0, len(boot().PCRs[pcr]) - 1} {
			value(fmt.Sprintf("with another byte %d", at), func(v []byte) []byte {
				v[at] ^= 1
				return v
			})
		}
		twist(fmt.Sprintf("without PCR %d", pcr), func(b *sources.Boot) { delete(b.PCRs, pcr) })
	}
	if boot().Log != nil {
		twist("no log", func(b *sources.Boot) { b.Log, b.NoLog = nil, "the machine sent none" })
		twist("an empty log", func(b *sources.Boot) { b.Log = &sources.BootLog{} })
	}
	return all
}

// A hostileDevID is a DevID that resembles the DevID of a listed TPM.
type hostileDevID struct {
	name  string
	devID *sources.DevID
}

// hostileDevIDs returns DevIDs of a stranger that resemble listed. Package attestor rejects most of
// them.
func hostileDevIDs(listed, stranger *sources.DevID) []hostileDevID {
	all := []hostileDevID{{"no DevID", nil}, {"an empty DevID", &sources.DevID{}}}
	twist := func(name string, key crypto.PublicKey, chain ...[]byte) {
		all = append(all, hostileDevID{name, &sources.DevID{Chain: chain, Key: key}})
	}
	leaf, own := listed.Chain[0], stranger.Chain[0]
	twist("no certificate", listed.Key)
	twist("certificates of nil", listed.Key, make([][]byte, 16)...)
	twist("a certificate cut off", listed.Key, leaf[:len(leaf)-1])
	twist("the listed certificate for another key", stranger.Key, listed.Chain...)
	twist("the listed certificate for no key", nil, listed.Chain...)
	twist("the listed certificate for a typed nil", (*ecdsa.PublicKey)(nil), listed.Chain...)
	twist("the listed certificate for an empty key", &ecdsa.PublicKey{}, listed.Chain...)
	twist("the listed certificate behind another", stranger.Key, own, leaf)
	twist("another certificate before the listed chain", stranger.Key, append([][]byte{own}, listed.Chain...)...)
	twist("another certificate for the listed key", listed.Key, own)
	return all
}

// garbage returns ev's certificate without its last byte or, if ev has none, bytes that only begin
// like a certificate.
func garbage(ev *sources.Evidence) []byte {
	if c := ev.Certificate; len(c) > 0 {
		return bytes.Clone(c[:len(c)-1])
	}
	return []byte{0x30, 0x82, 0x02, 0xff, 0x30, 0x00}
}

// Tree returns everything below dir: for each path its type, its permissions, its modification
// time, and its content or, for a symbolic link, its target; or the error if it cannot be read.
// Tree is for Backend.Content.
func Tree(dir string) map[string]string {
	tree := map[string]string{}
	walked := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			tree[path], err = describe(path, d)
		}
		if err != nil {
			tree[path] = err.Error()
		}
		return nil
	})
	if walked != nil {
		tree[dir] = walked.Error()
	}
	return tree
}

// describe returns Tree's value for one path.
func describe(path string, d fs.DirEntry) (string, error) {
	info, err := d.Info()
	if err != nil {
		return "", err
	}
	var content string
	switch {
	case d.Type().IsRegular():
		b, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		content = fmt.Sprintf("%x", sha256.Sum256(b))
	case d.Type()&fs.ModeSymlink != 0:
		if content, err = os.Readlink(path); err != nil {
			return "", err
		}
	}
	return fmt.Sprint(info.Mode(), info.ModTime().UnixNano(), content), nil
}

// fingerprint returns a hash of everything that ev points to.
func fingerprint(ev *sources.Evidence) string {
	h := sha256.New()
	walk(func(parts ...any) { fmt.Fprintln(h, parts...) }, reflect.ValueOf(ev), map[uintptr]bool{})
	return hex.EncodeToString(h.Sum(nil))
}

// walk emits every value that v points to, including unexported fields, and follows each pointer
// once.
func walk(emit func(...any), v reflect.Value, seen map[uintptr]bool) {
	emit(v.Kind())
	switch v.Kind() {
	case reflect.Pointer:
		emit(v.Pointer())
		if !v.IsNil() && !seen[v.Pointer()] {
			seen[v.Pointer()] = true
			walk(emit, v.Elem(), seen)
		}
	case reflect.Interface:
		if !v.IsNil() {
			emit(v.Elem().Type())
			walk(emit, v.Elem(), seen)
		}
	case reflect.Struct:
		for _, field := range v.Fields() {
			walk(emit, field, seen)
		}
	case reflect.Slice, reflect.Array:
		emit(v.Len())
		for i := range v.Len() {
			walk(emit, v.Index(i), seen)
		}
	case reflect.String:
		emit(v.String())
	case reflect.Bool:
		emit(v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		emit(v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		emit(v.Uint())
	case reflect.Map:
		emit(v.Len())
		for _, key := range sortedKeys(v) {
			walk(emit, key, seen)
			walk(emit, v.MapIndex(key), seen)
		}
	}
}

// sortedKeys returns the keys of a map in a fixed order.
func sortedKeys(m reflect.Value) []reflect.Value {
	keys := m.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return keys
}
