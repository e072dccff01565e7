package bootprofiles

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// Options are what the caller of Parse knows about the server that will use the file.
type Options struct {
	// Quote is what a server asks machines to prove; nil if that is not known. If it is set, a
	// profile that needs something machines are not asked for is an error: no machine could meet
	// it.
	Quote *Quote
}

// A Quote is what a server asks machines to prove.
type Quote struct {
	// Bank is the bank of the PCRs, "sha256" or "sha384".
	Bank string
	// PCRs are the PCRs that machines must quote.
	PCRs []int
	// EventLog is true if machines are asked for their event log.
	EventLog bool
}

// Parse reads a whole file. It returns a *list.FormatError for a file that breaks the rules of the
// format, or list.FormatErrors if there are several mistakes. It does not retain data.
func Parse(data []byte, opts Options) (*Document, error) {
	root, err := readJSON(data)
	if err != nil {
		return nil, err
	}
	r := reader{opts: opts}
	d := r.document(root)
	if err := r.mistakes.Err(); err != nil {
		return nil, err
	}
	return d, nil
}

// A reader converts JSON values into profiles and collects mistakes.
type reader struct {
	opts     Options
	mistakes list.FormatErrors
}

// fail records what is wrong with a value.
func (r *reader) fail(v *value, path, format string, args ...any) {
	if len(r.mistakes) == list.MaxMistakes {
		return
	}
	place := byteAt(v.at)
	if path != "" {
		place = fmt.Sprintf("%s (%s)", path, place)
	}
	r.mistakes = append(r.mistakes, mistake(place, fmt.Sprintf(format, args...)))
}

// document reads a file.
func (r *reader) document(v *value) *Document {
	d := &Document{said: map[string]string{}}
	comments := map[string][]string{}
	m := r.object(v, "", comments, "", "version", "serial", "expires", "list", "profiles")
	d.comment = comments[""]
	r.readHeader(&d.header, m)
	all, ok := m["profiles"]
	if !ok {
		r.fail(v, "", `no field "profiles": a file without profiles has "profiles": []`)
		return d
	}
	for i, one := range r.array(all, "profiles", MaxProfiles) {
		path := fmt.Sprintf("profiles[%d]", i)
		p := r.profile(&one, path)
		if _, there := d.said[p.Name]; there && p.Name != "" {
			r.fail(&one, path, "the name %q for the second time", p.Name)
		}
		d.said[p.Name] = p.said()
		d.profiles = append(d.profiles, p)
	}
	return d
}

// readHeader reads what a file says about itself. The rules are those of all lists.
func (r *reader) readHeader(h *list.Header, m map[string]*value) {
	if v, ok := m["version"]; ok {
		if version, ok := r.number(v, "version"); ok && version != 1 {
			r.fail(v, "version", "a version of the format other than 1")
		}
	}
	if v, ok := m["serial"]; ok {
		h.Serial, h.HasSerial = r.number(v, "serial")
	}
	if v, ok := m["expires"]; ok {
		h.Expires = r.time(v, "expires")
	}
	if v, ok := m["list"]; ok {
		h.Name, _ = r.text(v, "list")
		if err := sources.CheckText("", "list name", h.Name); err != nil {
			r.fail(v, "list", "%v", err)
		}
	}
}

// profile reads a profile.
func (r *reader) profile(v *value, path string) Profile {
	var p Profile
	comments := map[string][]string{}
	m := r.object(v, path, comments, "", "name", "labels", "expires", "pcrs", "secureboot", "images")
	p.Name = r.name(v, m["name"], path)
	if labels, ok := m["labels"]; ok {
		p.Labels = r.labels(labels, path+".labels")
	}
	if expires, ok := m["expires"]; ok {
		p.Expires = r.time(expires, path+".expires")
	}
	if pcrs, ok := m["pcrs"]; ok {
		r.pcrs(&p, pcrs, path+".pcrs", comments)
	}
	if boot, ok := m["secureboot"]; ok {
		p.SecureBoot = r.secureBoot(boot, path+".secureboot", comments)
	}
	if images, ok := m["images"]; ok {
		r.images(&p, images, path+".images", comments)
	}
	if m["pcrs"] == nil && m["secureboot"] == nil && m["images"] == nil && v.kind == '{' {
		r.fail(v, path, "no condition, so any machine would meet it: write pcrs, secureboot or images")
	}
	if len(comments) > 0 {
		p.Comments = comments
	}
	return p
}

// name reads the name of a profile, without the blanks around it.
func (r *reader) name(profile, v *value, path string) string {
	if v == nil {
		if profile.kind == '{' {
			r.fail(profile, path, `no field "name"`)
		}
		return ""
	}
	path += ".name"
	text, ok := r.text(v, path)
	name, problem := list.Tidy(sources.PrefixBoot, "profile's name", []byte(text))
	switch {
	case problem != "":
		r.fail(v, path, "%s", problem)
	case ok && len(name) == 0:
		r.fail(v, path, "an empty name")
	}
	return string(name)
}

// labels reads labels. As in all lists, blanks around them and duplicates are removed.
func (r *reader) labels(v *value, path string) (labels []string) {
	for i, one := range r.array(v, path, MaxValues) {
		at := fmt.Sprintf("%s[%d]", path, i)
		text, ok := r.text(&one, at)
		if !ok {
			continue
		}
		label, problem := list.TidyLabel(i+1, []byte(text))
		if problem != "" {
			r.fail(&one, at, "%s", problem)
		} else if !slices.Contains(labels, string(label)) {
			labels = append(labels, string(label))
		}
		if i == sources.MaxLabels {
			break
		}
	}
	return labels
}

// pcrs reads the allowed values of PCRs.
func (r *reader) pcrs(p *Profile, v *value, path string, comments map[string][]string) {
	banks := r.object(v, path, comments, "pcrs", "sha256", "sha384")
	switch {
	case len(banks) > 1:
		r.fail(v, path, "two banks, of which a machine quotes only one: write a file for each")
		return
	case len(banks) == 0 && v.kind == '{':
		r.fail(v, path, "no bank, so any machine would meet it: write sha256 or sha384, or remove pcrs")
	}
	for bank, in := range banks { // one
		path += "." + bank
		p.Bank, p.PCRs = bank, map[int][][]byte{}
		r.checkBank(in, path, bank)
		indexes := r.object(in, path, comments, "pcrs."+bank, pcrNames()...)
		if len(indexes) == 0 && in.kind == '{' {
			r.fail(in, path, "no PCR, so any machine would meet it: write one, or remove pcrs")
		}
		for _, name := range slices.Sorted(maps.Keys(indexes)) {
			pcr, _ := strconv.Atoi(name) // object has checked the names
			values, at := indexes[name], path+"."+name
			if q := r.opts.Quote; q != nil && !slices.Contains(q.PCRs, pcr) {
				r.fail(values, at, "machines do not quote PCR %d: add it to pcrs in the quote block, or remove it here",
					pcr)
			}
			p.PCRs[pcr] = r.digests(values, at, Sizes()[bank])
		}
	}
}

// checkBank refuses a bank that machines do not quote.
func (r *reader) checkBank(v *value, path, bank string) {
	if q := r.opts.Quote; q != nil && q.Bank != bank {
		r.fail(v, path, "machines quote the bank %s by the quote block, and not %s", q.Bank, bank)
	}
}

func pcrNames() []string {
	names := make([]string, 0, MaxPCR+1)
	for pcr := range MaxPCR + 1 {
		names = append(names, strconv.Itoa(pcr))
	}
	return names
}

// secureBoot reads the conditions for Secure Boot.
func (r *reader) secureBoot(v *value, path string, comments map[string][]string) *SecureBoot {
	m := r.object(v, path, comments, "secureboot", "enabled", "db", "dbx", "authorities")
	if len(m) == 0 && v.kind == '{' {
		r.fail(v, path, "no condition: write enabled, db, dbx or authorities, or remove secureboot")
	}
	r.needsLog(v, path, PCRSecureBoot)
	s := &SecureBoot{}
	if enabled, ok := m["enabled"]; ok {
		is := enabled.kind == 't'
		if s.Enabled = &is; !is && enabled.kind != 'f' {
			r.fail(enabled, path+".enabled", "a JSON %v instead of true or false", enabled.kind)
		}
	}
	for _, c := range []struct {
		name, rule string
		to         *[][]byte
	}{{"db", "only", &s.DB}, {"dbx", "contains", &s.DBX}, {"authorities", "only", &s.Authorities}} {
		if in, ok := m[c.name]; ok {
			at := path + "." + c.name
			if values := r.rule(in, at, comments, "secureboot."+c.name, c.rule); values != nil {
				*c.to = r.digests(values, at+"."+c.rule, Sizes()["sha256"])
			}
		}
	}
	return s
}

// images reads the images that may be in PCR 4. Their digests are of the bank of the profile's
// PCRs, or else of the bank that machines quote, or, if neither is known, of any bank.
func (r *reader) images(p *Profile, v *value, path string, comments map[string][]string) {
	r.needsLog(v, path, PCRImages)
	values := r.rule(v, path, comments, "images", "only")
	if values == nil {
		return
	}
	bank := p.Bank
	if bank == "" && r.opts.Quote != nil {
		bank = r.opts.Quote.Bank
	}
	if bank == "" {
		bank = "sha256"
		if len(values.all) > 0 && len(values.all[0].text) == 2*Sizes()["sha384"] {
			bank = "sha384"
		}
	}
	p.Bank, p.Images = bank, r.digests(values, path+".only", Sizes()[bank])
}

// needsLog refuses a condition that needs the event log of a PCR if machines are not asked
// for it.
func (r *reader) needsLog(v *value, path string, pcr int) {
	q := r.opts.Quote
	if q == nil {
		return
	}
	if !slices.Contains(q.PCRs, pcr) {
		r.fail(v, path, "it needs PCR %d, which machines do not quote: add it to pcrs in the quote block", pcr)
	}
	if !q.EventLog {
		r.fail(v, path, `it needs the event log, which machines are not asked for: `+
			`write event_log = "optional" or "required" in the quote block`)
	}
}

// rule reads an object whose only member is a list of values, and returns that list, or nil if it
// is missing.
func (r *reader) rule(v *value, path string, comments map[string][]string, of, name string) *value {
	m := r.object(v, path, comments, of, name)
	if len(m) == 0 && v.kind == '{' {
		r.fail(v, path, "no condition: write %s, or remove it", name)
	}
	return m[name]
}

// digests reads digests of size bytes: at least one, without duplicates.
func (r *reader) digests(v *value, path string, size int) [][]byte {
	all := r.array(v, path, MaxValues)
	if v.kind == '[' && len(all) == 0 {
		r.fail(v, path, "an empty list, which no machine meets: write a value")
	}
	digests, seen := make([][]byte, 0, len(all)), map[string]bool{}
	for i, one := range all {
		at := fmt.Sprintf("%s[%d]", path, i)
		text, ok := r.text(&one, at)
		if !ok {
			continue
		}
		digest, err := hex.DecodeString(text)
		switch {
		case err != nil || len(digest) != size:
			r.fail(&one, at, "%s is not %d hex digits", list.Quoted([]byte(text)), 2*size)
		case seen[string(digest)]:
			r.fail(&one, at, "the value %x for the second time", digest)
		default:
			seen[string(digest)] = true
			digests = append(digests, digest)
		}
	}
	return digests
}

// object returns the members of an object by name, without its comment, which it adds to comments.
// An unknown member or a null is a mistake.
func (r *reader) object(
	v *value, path string, comments map[string][]string, of string, known ...string,
) map[string]*value {
	m := map[string]*value{}
	if v.kind != '{' {
		r.fail(v, path, "a JSON %v instead of an object", v.kind)
		return m
	}
	for i, name := range v.names {
		member := &v.all[i]
		switch at := strings.TrimPrefix(path+"."+name, "."); {
		case name != "comment" && !slices.Contains(known, name):
			r.fail(member, path, "the member %s is not known, and a condition that is misspelt must not vanish: "+
				"it may be %s or comment", list.Quoted([]byte(name)), some(known))
		case member.kind == 'n':
			r.fail(member, at, "null: write a value, or remove it")
		case name != "comment":
			m[name] = member
		default:
			if comment := lines(member); comment != nil {
				comments[of] = comment
			}
		}
	}
	return m
}

// some returns a text that lists the allowed names of a member.
func some(known []string) string {
	if len(known) > MaxPCR {
		return "a PCR from 0 to " + strconv.Itoa(MaxPCR)
	}
	return strings.Join(known, ", ")
}

// lines returns a comment that is a string or an array of strings. It ignores any other.
func lines(v *value) []string {
	switch v.kind {
	case '"':
		return []string{v.text}
	case '[':
		all := make([]string, len(v.all))
		for i := range v.all {
			if v.all[i].kind != '"' {
				return nil
			}
			all[i] = v.all[i].text
		}
		return all
	}
	return nil
}

// array returns the elements of an array, of which there may be at most most.
func (r *reader) array(v *value, path string, most int) []value {
	switch {
	case v.kind != '[':
		r.fail(v, path, "a JSON %v instead of an array", v.kind)
		return nil
	case len(v.all) > most:
		r.fail(v, path, "%d elements, at most %d are allowed", len(v.all), most)
		return v.all[:most]
	}
	return v.all
}

// text returns a string.
func (r *reader) text(v *value, path string) (string, bool) {
	if v.kind != '"' {
		r.fail(v, path, "a JSON %v instead of a string", v.kind)
		return "", false
	}
	return v.text, true
}

// time returns a time.
func (r *reader) time(v *value, path string) time.Time {
	text, ok := r.text(v, path)
	if !ok {
		return time.Time{}
	}
	t, err := list.ParseTime(text)
	if err != nil {
		r.fail(v, path, "%v", err)
	}
	return t
}

// number returns a whole number of up to 64 bits.
func (r *reader) number(v *value, path string) (uint64, bool) {
	n, err := list.ParseNumber([]byte(v.text))
	if v.kind != '0' {
		_, err = list.ParseNumber(nil)
	}
	if err != nil {
		r.fail(v, path, "%v", err)
		return 0, false
	}
	return n, true
}
