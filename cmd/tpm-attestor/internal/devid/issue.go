package devid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/server/boot"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

func newIssue(output *cli.Format) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use:   "issue",
		Short: "Issue a DevID to a machine that proves its key",
		Long: `issue is for whoever issues DevIDs, on any machine that can read the server's lists. challenge takes a
machine's request and asks it to prove that its keys are in one TPM; certificate checks the answer and signs.`,
		Example: cli.Examples(
			"tpm-attestor devid issue challenge request.json --config server.conf --state laptop-17.state",
			"tpm-attestor devid issue certificate answer.json --config server.conf --state laptop-17.state --csr",
		),
	}, newChallenge(output), newCertificate(output))
}

// issueFlags are the flags that both commands have.
type issueFlags struct{ config, state, to string }

func (f *issueFlags) add(cmd *cobra.Command, written string) {
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "the server's configuration, whose sources and rules say who may be "+
		"given a DevID (required)")
	flags.StringVar(&f.state, "state", "", "the file that remembers the challenge until the answer comes (required)")
	flags.StringVar(&f.to, "to", "", "the file for the "+written+" (default: standard output)")
	cli.Complete(cmd, cli.Files, "config", "state", "to")
}

func (f *issueFlags) check() error {
	switch {
	case f.config == "":
		return cli.UsageError("name the server's configuration, with --config")
	case f.state == "":
		return cli.UsageError("name the file that remembers the challenge, with --state")
	}
	return nil
}

func newChallenge(output *cli.Format) *cobra.Command {
	var f issueFlags
	cmd := &cobra.Command{
		Use:   "challenge REQUEST",
		Short: "Challenge a machine that asks for a DevID",
		Long: `challenge reads a machine's REQUEST ("-" is the standard input) and prints the challenge for it. A
machine that the configuration does not know is refused at once. A source "devid" is not asked: a rule that needs one
besides others needs only the others here, since the machine has no DevID yet.

What the configuration asks of a machine's boot is asked here, too. The sources are read as the server has
them: its caches are used and not written.

--state names a new file that only its owner can read: whoever has it could answer without a TPM. devid issue
certificate removes it.

Exit code 3 says that the machine is refused, 4 that a source cannot tell.`,
		Example: cli.Examples(
			"tpm-attestor devid issue challenge request.json --config server.conf --state laptop-17.state " +
				"--to challenge.json",
		),
		Args: cli.OneArgument("the request"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if *output == cli.JSON {
				cli.Note(cmd, "a challenge is always JSON: --output changes nothing")
			}
			return runChallenge(cmd, &f, args[0])
		},
	}
	cmd.ValidArgsFunction = cli.Files
	f.add(cmd, "challenge")
	return cmd
}

// A state is a challenge that waits for its answer.
type state struct {
	Version int            `json:"version"`
	Type    string         `json:"type"`
	Request []byte         `json:"request"` // the file
	Session jsontext.Value `json:"session"` // see attestor.Session.Suspend
}

// issuer decides who is given a DevID.
type issuer struct {
	*config.Config
	set      *admission.Set
	members  []admission.Member // including the sources that know DevIDs
	verifier attestor.Verifier
}

// openIssuer reads the configuration and loads its sources. The caller closes them.
func openIssuer(cmd *cobra.Command, name string) (*issuer, error) {
	text, err := input.Read(name, nil, cli.MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	var members []admission.Member
	c, err := config.NewLoader().LoadFile(cmd.Context(), string(text))
	if err == nil {
		members = c.Members
		err = c.ForEnrolment()
	}
	if err != nil {
		return nil, cli.Exit(cli.ExitUsage, fmt.Errorf("%s: %w", name, err))
	}
	c.Examine(true)
	i := &issuer{Config: c, members: members, verifier: attestor.Verifier{AllowWeakEK: c.AllowWeakEK, Enrolment: true}}
	if i.set, err = c.NewSet(admission.Options{Once: true, Log: warnLog(cmd.ErrOrStderr())}); err != nil {
		return nil, err
	}
	p := cli.StartProgress(cmd.ErrOrStderr(), "reading the sources", "")
	defer p.End()
	i.set.Start(cmd.Context(), nil)
	return i, nil
}

// warnLog returns a log that tells the user what is wrong with sources.
func warnLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: slog.LevelWarn,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// ask returns what a challenge asks for: it depends on the configuration and on what the machine can answer.
func (i *issuer) ask(s *attestor.Session) (attestor.Ask, error) {
	ask := attestor.Ask{DevID: true}
	switch q := i.Quote; {
	case !s.Can(attestor.CanDevID):
		return ask, errors.New("the request offers no DevID: make it with tpm-attestor devid request")
	case q == nil:
	case s.Can(attestor.CanPCRs):
		ask.Quote = &attestor.QuoteRequest{Bank: q.Bank, PCRs: q.PCRs}
		ask.EventLog = q.EventLog != config.EventLogOff
	case q.Required:
		return ask, errors.New("the configuration requires a quote of PCRs, and the machine cannot quote them")
	}
	return ask, nil
}

// evidence returns what the machine has sent.
func evidence(s *attestor.Session) *sources.Evidence {
	ek := s.EK()
	return &sources.Evidence{EKHash: ek.Hash, EK: ek.Public, Certificate: ek.Certificate, Chain: s.Chain()}
}

// refusal returns the error for a decision that does not admit the machine, or nil.
func refusal(d *policy.Decision, ek sources.EKHash) error {
	switch d.Outcome {
	case policy.Challenge, policy.Admitted:
		return nil
	case policy.Unavailable:
		return cli.Exit(cli.ExitCannotTell, fmt.Errorf("cannot tell whether the machine with the EK hash %s "+
			"may be given a DevID: %s", ek, d.Explain()))
	}
	why := "no allow rule holds"
	if len(d.Denied) > 0 {
		why = "the deny rule " + strings.Join(d.Denied, ", ") + " holds"
	}
	return cli.Exit(cli.ExitRefused, fmt.Errorf("the machine with the EK hash %s is refused, since %s: %s",
		ek, why, d.Explain()))
}

func runChallenge(cmd *cobra.Command, f *issueFlags, name string) error {
	if err := f.check(); err != nil {
		return err
	}
	request, err := readExchanged(cmd, typeRequest, name)
	if err != nil {
		return err
	}
	i, err := openIssuer(cmd, f.config)
	if err != nil {
		return err
	}
	defer i.set.Close()
	session, err := i.verifier.Begin(request)
	if err != nil {
		return cli.Exit(cli.ExitRefused, fmt.Errorf("%s: %w", name, err))
	}
	ask, err := i.ask(session)
	if err != nil {
		return cli.Exit(cli.ExitRefused, fmt.Errorf("%s: %w", name, err))
	}
	ev := evidence(session)
	d := i.set.BeforeChallenge(cmd.Context(), ev)
	if err := refusal(&d, ev.EKHash); err != nil {
		return err
	}
	message, err := session.Challenge(ask)
	if err != nil {
		return err
	}
	challenge, err := exchanged{}.wrap(typeChallenge, message)
	if err != nil {
		return err
	}
	if err := saveState(f.state, session, request); err != nil {
		return err
	}
	if err := f.print(cmd, "challenge", challenge); err != nil {
		return errors.Join(err, os.Remove(f.state))
	}
	cli.Note(cmd, "the EK hash is %s; the challenge is for that TPM alone", ev.EKHash)
	i.noteStranger(cmd, listedBy(&d), ev.EKHash)
	return nil
}

// listedBy returns the sources that list a machine before its challenge.
func listedBy(d *policy.Decision) []string {
	var names []string
	for _, a := range d.Answers {
		if a.Verdict.Listed {
			names = append(names, a.Source)
		}
	}
	return names
}

// noteStranger reports whether no list has the machine, so that only its TPM's vendor or its boot is known. It
// tells the issuer so: anybody may have such a machine.
func (i *issuer) noteStranger(cmd *cobra.Command, listed []string, ek sources.EKHash) bool {
	if i.KnowsMachine(listed) {
		return false
	}
	cli.Note(cmd, "no list knows this machine: the rules go by the vendor of its TPM, or by what it has booted. "+
		"That it is yours, and has the EK hash %s, is for you to say", ek)
	return true
}

// print writes or prints what a command has made.
func (f *issueFlags) print(cmd *cobra.Command, what string, content []byte) error {
	if f.to == "" {
		return cli.PrintText(cmd, string(content))
	}
	const readable = 0o644
	return create(what, f.to, readable, content)
}

func saveState(path string, session *attestor.Session, request []byte) error {
	suspended, err := session.Suspend()
	if err != nil {
		return err
	}
	content, err := json.Marshal(state{Version: 1, Type: typeState, Request: request, Session: suspended})
	if err != nil {
		return err
	}
	return create("state", path, 0o600, append(content, '\n'))
}

// readOwn reads the file with the state. It is an error if another user could have written or read it: a user who
// can write the state can have any answer accepted, and one who can read it can answer without a TPM.
func readOwn(path string) ([]byte, error) {
	file, err := os.Open(path) //nolint:gosec // G304: the operator names the file
	if err != nil {
		return nil, fmt.Errorf("read the state of the challenge: %w", err)
	}
	defer func() { _ = file.Close() }() // it was only read
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the state of the challenge: %w", err)
	}
	content, err := input.ReadAll(file, 2*maxExchanged)
	if err != nil {
		return nil, fmt.Errorf("read the state of the challenge %s: %w", path, err)
	}
	if _, err := unwrap(typeState, content); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if why := strangers(info); why != "" {
		return nil, cli.Exit(cli.ExitRefused, fmt.Errorf("%s: another user may know or have made it, since %s: "+
			"make a new challenge", path, why))
	}
	return content, nil
}

// readState reads the state of the challenge that waits for an answer, and the request in it.
func readState(path string) (*state, *exchanged, error) {
	content, err := readOwn(path)
	if err != nil {
		return nil, nil, err
	}
	s := new(state)
	if err := json.Unmarshal(content, s); err != nil {
		return nil, nil, fmt.Errorf("%s: it is no %s: %w", path, typeState, err)
	}
	request, err := unwrap(typeRequest, s.Request)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, request, nil
}

// proved is a machine that has proved its keys and that the rules admit.
type proved struct {
	evidence *sources.Evidence
	decision policy.Decision
	devID    *attestor.DevID
	stranger bool // see noteStranger
}

// errNoProof is wrapped by the error if the answer proves nothing. The challenge is then used up.
var errNoProof = errors.New("the answer proves nothing")

// prove checks an answer and asks the sources again: a machine that is no longer listed is refused.
func (i *issuer) prove(ctx context.Context, s *state, answer []byte) (*proved, error) {
	session, err := i.verifier.Resume(s.Request, s.Session)
	if err != nil {
		return nil, cli.Exit(cli.ExitRefused, err)
	}
	got, err := session.Finish(answer)
	switch {
	case errors.Is(err, attestor.ErrChallengeFailed), errors.Is(err, attestor.ErrQuoteFailed),
		errors.Is(err, attestor.ErrDevIDFailed):
		return nil, cli.Exit(cli.ExitRefused, fmt.Errorf("%w: %w", errNoProof, err))
	case err != nil:
		return nil, cli.Exit(cli.ExitRefused, fmt.Errorf("the answer: %w", err))
	case got.DevID == nil:
		return nil, cli.Exit(cli.ExitRefused, fmt.Errorf("%w: there is no DevID in it", errNoProof))
	}
	p := &proved{evidence: evidence(session), devID: got.DevID}
	p.evidence.Proof = &sources.Proof{AK: session.AK()}
	if got.Quote != nil {
		asked := i.Quote != nil && i.Quote.EventLog != config.EventLogOff
		p.evidence.Proof.Boot = boot.Of(got.Quote, got.EventLog, asked)
	}
	if err := i.checkBoot(p.evidence.Proof.Boot); err != nil {
		return nil, cli.Exit(cli.ExitRefused, err)
	}
	p.decision = i.set.AfterChallenge(ctx, p.evidence)
	return p, refusal(&p.decision, p.evidence.EKHash)
}

// checkBoot checks what the machine has proved about its boot, by the current configuration.
func (i *issuer) checkBoot(b *sources.Boot) error {
	switch q := i.Quote; {
	case q == nil:
	case b == nil && q.Required:
		return errors.New("the configuration requires a quote of PCRs, and the challenge has not asked for one: " +
			"make a new challenge")
	case b != nil && !quoted(b, q):
		return errors.New("the configuration asks for other PCRs than the challenge has: make a new challenge")
	case b != nil && q.EventLog == config.EventLogRequired:
		if why := boot.NoReplay(b); why != "" {
			return errors.New(`quote: event_log is "required": ` + why)
		}
	}
	return nil
}

// quoted reports whether a machine has quoted everything that a configuration asks for.
func quoted(b *sources.Boot, q *config.Quote) bool {
	return b.Bank == q.Bank && !slices.ContainsFunc(q.PCRs, func(pcr int) bool { return b.PCRs[pcr] == nil })
}
