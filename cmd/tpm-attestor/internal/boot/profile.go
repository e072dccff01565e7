package boot

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/pcrs"
	"github.com/spire-tpm/spire-tpm-attestor/internal/atomicfile"
	"github.com/spire-tpm/spire-tpm-attestor/server/boot"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/bootpolicy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
)

// profileFlags are the flags of the command boot profile.
type profileFlags struct {
	flags
	name         string
	labels       []string
	pcrs         []int
	pinPCR7, dbx bool
	merge, to    string
}

func newProfile(output *cli.Format) *cobra.Command {
	var f profileFlags
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Make a boot profile from this machine, or add this machine to one",
		Long: `profile writes a boot profile that this machine meets, for a source "boot_policy". Run it on a machine
that has booted as it should. Its comments say what changes with which update.

It pins the values of the PCRs, except of PCR 7 if the event log proves the Secure Boot state: then the
profile names the state, the certificates in db and those that have vouched, so that an update of dbx
changes nothing. It also names the images in PCR 4, so that a server can tell which one is new.

--merge adds this machine to the profile of that name in a file: a second model, or a new kernel before
it is rolled out. Each value that is added is told. What the profile does not ask about stays so, and a
machine without Secure Boot, or with an older dbx than the profile requires, is refused. The serial, if
there is one, goes up by one.`,
		Example: cli.Examples(
			"sudo tpm-attestor boot profile --name web > boot.json",
			"sudo tpm-attestor boot profile --name web --merge boot.json --to boot.json",
			"sudo tpm-attestor boot profile --name web --pcrs 0,4,7 --label env:prod",
		),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if *output == cli.JSON {
				cli.Note(cmd, "a profile is always JSON: --output changes nothing")
			}
			return f.run(cmd)
		},
	}
	cmd.ValidArgsFunction = cli.Nothing
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "golden", "the profile's name, which becomes the selector boot:<name>")
	flags.StringArrayVar(&f.labels, "label", nil, "a label of machines that meet the profile; may be repeated")
	flags.IntSliceVar(&f.pcrs, "pcrs", []int{0, 2, 4, 7}, "the PCRs that the server asks for, as in its quote block; "+
		"with --merge, by default those of the profile")
	flags.BoolVar(&f.pinPCR7, "pin-pcr7", false, "pin the value of PCR 7, too: an update of dbx then needs a new value")
	flags.BoolVar(&f.dbx, "dbx", false, "require what is in dbx: machines with an older dbx do not meet the profile")
	flags.StringVar(&f.merge, "merge", "", "a file with profiles to which this machine is added")
	flags.StringVar(&f.to, "to", "", "a file to write, as a whole or not at all; "+
		"without --merge, it must not be there (default: standard output)")
	cli.Complete(cmd, cli.Files, "merge", "to")
	cli.Complete(cmd, cli.Nothing, "name", "label", "pcrs")
	return cmd
}

func (f *profileFlags) run(cmd *cobra.Command) error {
	var header list.Header
	var comment []string
	var profiles []bootprofiles.Profile
	if f.merge != "" {
		old, err := readProfiles(cmd, f.merge)
		if err != nil {
			return err
		}
		header, comment, profiles = old.Header(), old.Comment(), slices.Clone(old.Profiles())
		if header.HasSerial {
			if header.Serial++; header.Serial == 0 {
				return cli.Exit(cli.ExitRefused, fmt.Errorf("%s: its serial is the last that there is", f.merge))
			}
		}
	}
	at := slices.IndexFunc(profiles, func(p bootprofiles.Profile) bool { return p.Name == f.name })
	if err := f.choosePCRs(cmd, profiles, at); err != nil {
		return err
	}
	s, err := f.read(cmd, f.pcrs)
	switch {
	case err != nil:
		return err
	case s.noTPM != nil:
		return fmt.Errorf("the log would be believed without the TPM's word: %w "+
			"(to make a profile of a log alone, name it by --log)", s.noTPM)
	case !s.tpm:
		cli.Note(cmd, "the PCRs are what the log comes to: no TPM was asked")
	}
	var p *bootprofiles.Profile
	if at < 0 {
		if p, err = f.profile(cmd, s); err != nil {
			return err
		}
		profiles = append(profiles, *p)
	} else {
		if p, err = mergeProfile(profiles[at], s); err != nil {
			return cli.Exit(cli.ExitRefused, fmt.Errorf("%s: profile %q: %w", f.merge, f.name, err))
		}
		noteAdded(cmd, &profiles[at], p)
		profiles[at] = *p
	}
	doc, err := bootprofiles.New(header, comment, profiles)
	if err != nil {
		return cli.Exit(cli.ExitUsage, err)
	}
	if err := met(cmd, p, s); err != nil {
		return err
	}
	noteUnmeasured(cmd, p, s)
	return f.print(cmd, doc)
}

// noteUnmeasured prints which pinned PCRs have the value with which the TPM starts. Firmware that measures leaves
// none of PCRs 0 to 7 at that value; any machine that boots without measuring meets a profile that has it.
func noteUnmeasured(cmd *cobra.Command, p *bootprofiles.Profile, s *state) {
	var all []string
	for _, pcr := range slices.Sorted(maps.Keys(p.PCRs)) {
		if value := s.PCRs[pcr]; pcr <= bootprofiles.PCRSecureBoot && len(bytes.Trim(value, "\x00")) == 0 {
			all = append(all, strconv.Itoa(pcr))
		}
	}
	if len(all) > 0 {
		cli.Note(cmd, "zeros are in PCR %s: nothing was measured there, by a firmware that does not measure, "+
			"or not into this bank, and whatever has booted unmeasured meets the profile: do not use it",
			strings.Join(all, ", "))
	}
}

// choosePCRs determines the PCRs of the profile. If at is the place of an existing profile, to which the machine is
// added, they are that profile's. It is then an error if a flag would change them, since merging does not.
func (f *profileFlags) choosePCRs(cmd *cobra.Command, profiles []bootprofiles.Profile, at int) error {
	if at < 0 {
		if f.merge != "" {
			cli.Note(cmd, "%s has no profile %q: it is added as a new one", f.merge, f.name)
		}
		return checkPCRs(f.pcrs)
	}
	for _, flag := range []string{"label", "pin-pcr7", "dbx", "pcrs"} {
		if cmd.Flags().Changed(flag) {
			return cli.UsageError("--%s: %s has a profile %q already, and merging does not change what it asks for: "+
				"leave the flag out, or use another --name", flag, f.merge, f.name)
		}
	}
	f.pcrs = asksFor(&profiles[at])
	return nil
}

func readProfiles(cmd *cobra.Command, name string) (*bootprofiles.Document, error) {
	data, err := input.Read(name, cmd.InOrStdin(), bootprofiles.MaxBytes)
	if err != nil {
		return nil, fmt.Errorf("read the profiles: %w", err)
	}
	doc, err := bootprofiles.Parse(data, bootprofiles.Options{})
	if err != nil {
		return nil, cli.Exit(cli.ExitRefused, fmt.Errorf("%s: %w", name, err))
	}
	return doc, nil
}

func checkPCRs(pcrs []int) error {
	slices.Sort(pcrs)
	for i, pcr := range pcrs {
		if pcr < 0 || pcr > bootprofiles.MaxPCR || i > 0 && pcrs[i-1] == pcr {
			return cli.UsageError("--pcrs: name PCRs from 0 to %d, each once", bootprofiles.MaxPCR)
		}
	}
	if len(pcrs) == 0 {
		return cli.UsageError("--pcrs: name at least one PCR")
	}
	return nil
}

// asksFor returns the PCRs that a profile needs.
func asksFor(p *bootprofiles.Profile) []int {
	need := maps.Clone(p.PCRs)
	if need == nil {
		need = map[int][][]byte{}
	}
	if p.SecureBoot != nil {
		need[bootprofiles.PCRSecureBoot] = nil
	}
	if len(p.Images) > 0 {
		need[bootprofiles.PCRImages] = nil
	}
	return slices.Sorted(maps.Keys(need))
}

// profile returns a new profile of the machine.
func (f *profileFlags) profile(cmd *cobra.Command, s *state) (*bootprofiles.Profile, error) {
	p := &bootprofiles.Profile{
		Name: f.name, Labels: f.labels, Bank: s.Bank, PCRs: map[int][][]byte{}, Comments: map[string][]string{},
	}
	f.takeLog(cmd, s, p)
	var said []string
	for _, pcr := range f.pcrs {
		value, ok := s.PCRs[pcr]
		if !ok {
			return nil, fmt.Errorf("the event log has no events of PCR %d: leave it out of --pcrs", pcr)
		}
		if pcr == bootprofiles.PCRSecureBoot && p.SecureBoot != nil && !f.pinPCR7 {
			continue
		}
		if pcrs.PerMachine(pcr) {
			cli.Note(cmd, "PCR %d is %s: few machines will meet a profile that pins it", pcr, pcrs.Meaning(pcr))
		}
		p.PCRs[pcr] = [][]byte{value}
		said = append(said, fmt.Sprintf("PCR %d: %s.", pcr, pcrs.Meaning(pcr)))
	}
	if p.Comments["pcrs"] = said; len(p.PCRs) == 0 {
		p.PCRs = nil
		delete(p.Comments, "pcrs")
	}
	return p, nil
}

// takeLog adds to the profile what the event log proves.
func (f *profileFlags) takeLog(cmd *cobra.Command, s *state, p *bootprofiles.Profile) {
	if s.Log == nil {
		cli.Note(cmd, "the profile pins the values of PCRs alone: %s", s.why())
		return
	}
	if why := boot.NoReplay(s.Boot); why != "" {
		cli.Note(cmd, "%s: nothing of these PCRs is taken from it", why)
	}
	if s.Log.SecureBoot != "" {
		enabled := s.Log.SecureBoot == "enabled"
		p.SecureBoot = &bootprofiles.SecureBoot{Enabled: &enabled}
		p.Comments["secureboot"] = []string{"Judged by the event log and PCR 7. An update of dbx changes nothing here."}
		f.noteSecureBoot(cmd, s, enabled)
		if enabled && whole(s.Log.DB) {
			p.SecureBoot.DB = s.Log.DB.Digests
			p.Comments["secureboot.db"] = []string{"Changes when the vendor or the owner adds a certificate to db."}
		}
		if enabled && whole(s.Log.Authorities) {
			p.SecureBoot.Authorities = s.Log.Authorities.Digests
			p.Comments["secureboot.authorities"] = []string{"Changes when the boot loader is signed by another."}
		}
		if f.dbx && whole(s.Log.DBX) {
			p.SecureBoot.DBX = s.Log.DBX.Digests
			p.Comments["secureboot.dbx"] = []string{"Machines with an older dbx do not meet the profile."}
		}
	} else if slices.Contains(f.pcrs, bootprofiles.PCRSecureBoot) {
		cli.Note(cmd, "the value of PCR 7 is pinned, since the Secure Boot state is not proved: %s", s.Log.NoSecureBoot)
	}
	if slices.Contains(f.pcrs, bootprofiles.PCRImages) && whole(s.Log.Images) {
		p.Images = s.Log.Images.Digests
		p.Comments["images"] = []string{"What firmware has started. By these a server tells which image is new."}
	}
}

// noteSecureBoot prints a note if the profile asks for less of Secure Boot than it could. If the trusted
// certificates cannot be listed, the value of PCR 7 is pinned in their place: the state alone would admit a machine
// that trusts other certificates.
func (f *profileFlags) noteSecureBoot(cmd *cobra.Command, s *state, enabled bool) {
	if !enabled {
		cli.Note(cmd, "Secure Boot is disabled on this machine, and the profile asks for that: "+
			"machines that have it enabled do not meet it")
		return
	}
	for _, set := range []struct {
		name string
		sources.Measured
	}{{"db", s.Log.DB}, {"authorities", s.Log.Authorities}} {
		if !whole(set.Measured) && !f.pinPCR7 {
			cli.Note(cmd, "the value of PCR 7 is pinned, since the profile cannot name %s: %s",
				set.name, cmp.Or(set.Partial, "the event log has none"))
			f.pinPCR7 = true
		}
	}
}

// whole reports whether a profile can require exactly this set.
func whole(m sources.Measured) bool { return m.Partial == "" && len(m.Digests) > 0 }

// why says why the event log proves nothing.
func (s *state) why() string {
	if s.noLog != nil {
		return s.noLog.Error()
	}
	return s.NoLog
}

// mergeProfile returns the profile changed so that this machine meets it too.
func mergeProfile(p bootprofiles.Profile, s *state) (*bootprofiles.Profile, error) {
	if p.Bank != "" && p.Bank != s.Bank {
		return nil, fmt.Errorf("it is of another bank than the PCRs, which are of %s: choose --bank %s", s.Bank, p.Bank)
	}
	p.PCRs = maps.Clone(p.PCRs)
	for pcr, values := range p.PCRs {
		value, ok := s.PCRs[pcr]
		if !ok {
			return nil, fmt.Errorf("there is no value of PCR %d, which the profile pins", pcr)
		}
		p.PCRs[pcr] = union(values, [][]byte{value})
	}
	if !p.NeedsLog() {
		return &p, nil
	}
	if s.Log == nil {
		return nil, fmt.Errorf("it needs an event log: %s", s.why())
	}
	if len(p.Images) > 0 {
		if !whole(s.Log.Images) {
			return nil, fmt.Errorf("it names images, and this machine's are not known: %s", s.Log.Images.Partial)
		}
		p.Images = union(p.Images, s.Log.Images.Digests)
	}
	if p.SecureBoot == nil {
		return &p, nil
	}
	secure, err := mergeSecureBoot(*p.SecureBoot, s.Log)
	p.SecureBoot = secure
	return &p, err
}

func mergeSecureBoot(b bootprofiles.SecureBoot, log *sources.BootLog) (*bootprofiles.SecureBoot, error) {
	if b.Enabled != nil {
		want := map[bool]string{true: "enabled", false: "disabled"}[*b.Enabled]
		switch {
		case log.SecureBoot == "":
			return nil, fmt.Errorf("it needs Secure Boot %s, and here it is not known: %s", want, log.NoSecureBoot)
		case log.SecureBoot != want:
			return nil, fmt.Errorf("it needs Secure Boot %s, here it is %s: use another --name", want, log.SecureBoot)
		}
	}
	for _, set := range []struct {
		name string
		of   *[][]byte
		sources.Measured
	}{{"db", &b.DB, log.DB}, {"authorities", &b.Authorities, log.Authorities}} {
		if len(*set.of) == 0 {
			continue
		}
		if set.Partial != "" {
			return nil, fmt.Errorf("it names %s, and this machine's are not known: %s", set.name, set.Partial)
		}
		*set.of = union(*set.of, set.Digests)
	}
	lacks := 0
	for _, d := range b.DBX {
		if !has(log.DBX.Digests, d) {
			lacks++
		}
	}
	if lacks > 0 {
		return nil, fmt.Errorf("it needs %d digests in dbx, and this machine's dbx lacks %d of them: "+
			"update its dbx, or use another --name", len(b.DBX), lacks)
	}
	return &b, nil
}

// noteAdded prints what a profile admits now that it did not admit before.
func noteAdded(cmd *cobra.Command, old, merged *bootprofiles.Profile) {
	unchanged := true
	added := func(what string, old, merged [][]byte) {
		for _, d := range merged {
			if !has(old, d) {
				cli.Note(cmd, "added to %s: %x", what, d)
				unchanged = false
			}
		}
	}
	for _, pcr := range slices.Sorted(maps.Keys(merged.PCRs)) {
		added(fmt.Sprintf("PCR %d", pcr), old.PCRs[pcr], merged.PCRs[pcr])
	}
	if s := merged.SecureBoot; s != nil {
		added("db", old.SecureBoot.DB, s.DB)
		added("authorities", old.SecureBoot.Authorities, s.Authorities)
	}
	added("images", old.Images, merged.Images)
	if unchanged {
		cli.Note(cmd, "the profile admits this machine already: nothing was added")
	}
}

func union(a, b [][]byte) [][]byte {
	all := slices.Clone(a)
	for _, d := range b {
		if !has(all, d) {
			all = append(all, d)
		}
	}
	return all
}

func has(all [][]byte, d []byte) bool {
	return slices.ContainsFunc(all, func(o []byte) bool { return bytes.Equal(o, d) })
}

// met checks that this machine meets its profile, by the same source that a server asks, and prints what the server
// has to ask for.
func met(cmd *cobra.Command, p *bootprofiles.Profile, s *state) error {
	alone, err := bootprofiles.New(list.Header{}, nil, []bootprofiles.Profile{*p})
	if err != nil {
		return err
	}
	folder, err := os.MkdirTemp("", "tpm-attestor-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }() // in the system's own temporary folder
	path := filepath.Join(folder, "boot.json")
	if err := os.WriteFile(path, bootprofiles.Encode(alone), 0o600); err != nil {
		return err
	}
	quote := &bootprofiles.Quote{Bank: s.Bank, PCRs: asksFor(p), EventLog: p.NeedsLog()}
	source, err := bootpolicy.New(bootpolicy.Config{Path: path, Quote: quote})
	if err != nil {
		return err
	}
	if err := source.Load(cmd.Context()); err != nil {
		return err
	}
	v, err := source.Check(cmd.Context(), &sources.Evidence{Proof: &sources.Proof{Boot: s.Boot}})
	if err != nil {
		return err
	}
	if !v.Listed {
		return cli.Exit(cli.ExitRefused, fmt.Errorf("this machine does not meet the profile: %s", v.Reason))
	}
	cli.Note(cmd, "the server needs at least: %s", quoteBlock(quote))
	return nil
}

// quoteBlock returns the quote block of a server's configuration that asks for what a profile needs.
func quoteBlock(q *bootprofiles.Quote) string {
	s := "quote { pcrs = [" + strings.Trim(strings.ReplaceAll(fmt.Sprint(q.PCRs), " ", ", "), "[]") + "]"
	if q.Bank != "sha256" {
		s += fmt.Sprintf(" bank = %q", q.Bank)
	}
	if q.EventLog {
		s += ` event_log = "optional"`
	}
	return s + " }"
}

func (f *profileFlags) print(cmd *cobra.Command, doc *bootprofiles.Document) error {
	text := bootprofiles.Encode(doc)
	if f.to == "" {
		return cli.PrintText(cmd, string(text))
	}
	fill := func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	}
	if f.merge != "" {
		return atomicfile.Write(f.to, fill)
	}
	const readable = 0o666 // less the umask
	err := atomicfile.Create(f.to, readable, fill)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: --merge %s keeps the profiles in it; "+
			"to make them anew, write another file and rename it", f.to, f.to)
	}
	return err
}
