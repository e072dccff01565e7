package ekhashes

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// The known fields of an entry and of the list.
var (
	entryFields = [...]string{"hash", "name", "labels"}
	listFields  = [...]string{"keys", "version", "serial", "expires", "list"}
)

// Names that an inventory may give to fields that this project does not know, without "_" and "-".
var (
	// A field named in withdrawn that is true, or one named in inUse that is false, suggests that
	// the machine is not to be admitted.
	withdrawn = [...]string{
		"revoked", "disabled", "blocked", "banned", "denied", "deny", "stolen", "retired",
		"decommissioned", "deleted", "removed", "inactive",
	}
	inUse = [...]string{"enabled", "active", "allowed", "allow", "admitted", "valid"}
	// A field named in until suggests that the machine is to be admitted only up to a time.
	until = [...]string{
		"expires", "expiry", "expiration", "expiresat", "expiresafter", "expirationdate", "expirydate",
		"notafter", "validuntil", "validto", "until", "revokedat", "deletedat",
	}
)

// A doubt is what is doubtful about an unknown field. An entry with such a field is listed all the
// same.
type doubt struct {
	text string
	// off means that the field is doubtful only if its value means no, and on that it is doubtful
	// only if its value does not.
	off, on bool
}

// DoubtfulField says, for an operator, what is doubtful about a field of an entry, or returns an
// empty string. Unknown fields are ignored so that an inventory can have its own. But then nobody
// would notice a misspelt field, or a field that is meant to keep a machine out but does not. value
// is the JSON value.
func DoubtfulField(name string, value []byte) string { return doubtOf(name, true).about(value) }

func (d doubt) about(value []byte) string {
	no := false
	switch string(value) {
	case "false", "null", "0", `""`, `"false"`, `"no"`, "[]", "{}":
		no = true
	}
	if d.off && !no || d.on && no {
		return ""
	}
	return d.text
}

// doubtOf returns what is doubtful about a field of an entry or of the list.
func doubtOf(name string, entry bool) doubt {
	plain := strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(name))
	known := listFields[:]
	if entry {
		known = entryFields[:]
	}
	for _, k := range known {
		if near(plain, k) {
			return doubt{text: fmt.Sprintf("the field %q means nothing: is it meant to be %q?", name, k)}
		}
	}
	ignored := func(advice string) string {
		return fmt.Sprintf("the field %q means nothing, and the TPM is listed all the same: %s", name, advice)
	}
	has := func(words []string) bool { return slices.Contains(words, plain) }
	switch {
	case has(until[:]) && entry:
		return doubt{text: ignored("an entry has no expiry of its own"), on: true}
	case has(until[:]):
		return doubt{text: fmt.Sprintf(`the field %q means nothing: is it meant to be "expires"?`, name), on: true}
	case has(withdrawn[:]) && entry:
		return doubt{text: ignored("leave the entry out"), on: true}
	case has(inUse[:]) && entry:
		return doubt{text: ignored("leave the entry out"), off: true}
	}
	return doubt{}
}

// near reports whether a name may be a misspelling of a known name: it differs in case, or a letter
// is added, removed, changed or swapped with its neighbour. Longer names may have two such
// mistakes.
func near(name, known string) bool {
	const short = 4
	most := 2
	if len(known) <= short {
		most = 1
	}
	if len(name) > len(known)+most || len(known) > len(name)+most {
		return false
	}
	return distance(name, known) <= most
}

// distance is the number of letters that must be added, removed, changed or swapped with their
// neighbour to turn a into b ("optimal string alignment").
func distance(a, b string) int {
	before, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		twoBefore := before
		before, row = row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(before[j]+1, row[j-1]+1, before[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], twoBefore[j-2]+1)
			}
		}
	}
	return row[len(b)]
}

// doubts collects what is doubtful about the fields of a list. Each name is reported once, with its
// first place and the number of places.
type doubts struct {
	known map[doubtKey]*noted
	order []*noted
}

type doubtKey struct {
	name  string
	entry bool
}

type noted struct {
	doubt
	place string
	count int
}

// The maximum number of names that are examined, and of warnings.
const maxDoubtNames, maxDoubts = 256, 20

// field returns what is doubtful about a field, or nil.
func (d *doubts) field(name []byte, entry bool) *noted {
	if n, ok := d.known[doubtKey{string(name), entry}]; ok { // does not allocate
		return n
	}
	if len(d.known) >= maxDoubtNames || len(name) > list.MaxQuoted {
		return nil
	}
	if d.known == nil {
		d.known = map[doubtKey]*noted{}
	}
	var n *noted
	if one := doubtOf(string(name), entry); one.text != "" {
		n = &noted{doubt: one}
	}
	d.known[doubtKey{string(name), entry}] = n
	return n
}

// add records a field and its value.
func (d *doubts) add(n *noted, value []byte, place func() string) {
	if n.about(value) == "" {
		return
	}
	if n.count++; n.count == 1 {
		n.place = place()
		d.order = append(d.order, n)
	}
}

// hint returns the first doubt, to be appended to the error of a list that lacks a field.
func (d *doubts) hint() string {
	if len(d.order) == 0 {
		return ""
	}
	return "; " + d.order[0].text
}

// warnings returns the doubts as texts for operators.
func (d *doubts) warnings() []string {
	var all []string
	for _, n := range d.order[:min(len(d.order), maxDoubts)] {
		text := n.place + ": " + n.text
		if n.count > 1 {
			text += fmt.Sprintf(" (and in %d more places)", n.count-1)
		}
		all = append(all, text)
	}
	return all
}
