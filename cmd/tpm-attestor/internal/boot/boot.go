// Package boot has the commands that show how a machine has booted and that make boot profiles.
package boot

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/ekreport"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/pcrs"
	"github.com/spire-tpm/spire-tpm-attestor/server/boot"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// New returns the command boot.
func New(output *cli.Format) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use:   "boot",
		Short: "Show how this machine has booted, and make boot profiles",
		Long: `boot reads the event log that firmware and boot loaders have written and the PCRs of the TPM, as a
user with access to both. The log of the kernel is readable by root alone unless a site has changed that.`,
		Example: cli.Examples(
			"sudo tpm-attestor boot show",
			"sudo tpm-attestor boot profile --name web > boot.json",
		),
	}, newShow(output), newProfile(output))
}

// flags say which machine's boot to read.
type flags struct{ log, device, bank string }

func (f *flags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.log, "log", "", `a file with an event log, "-" for the standard input; `+
		"the TPM is not asked then, unless --device names it (default: this machine's log)")
	flags.StringVar(&f.device, "device", "", "the TPM: a path such as /dev/tpmrm0, or unix:/path for the socket of "+
		"a software TPM (default /dev/tpmrm0, else /dev/tpm0)")
	flags.StringVar(&f.bank, "bank", "", "the bank of PCRs: sha256 or sha384 (default sha256, or sha384 if the log "+
		"has no sha256)")
	cli.Complete(cmd, cli.Files, "log", "device")
	cli.Complete(cmd, cli.OneOf("sha256", "sha384"), "bank")
}

// state is what is known about a boot.
type state struct {
	log   *eventlog.Log // nil if there is none
	noLog error         // why log is nil
	tpm   bool          // whether the PCRs are the TPM's
	noTPM error         // why they are not, if reading the TPM failed
	*sources.Boot
}

// read reads the log and the PCRs. If there is no TPM to read, the PCRs are those to which the log replays. It is
// an error if there is neither.
func (f *flags) read(cmd *cobra.Command, pcrs []int) (*state, error) {
	if f.bank != "" && f.bank != "sha256" && f.bank != "sha384" {
		return nil, cli.UsageError("--bank %s: choose sha256 or sha384", f.bank)
	}
	t, err := ekreport.Open(f.device, "auto", os.Getenv)
	if err != nil {
		return nil, cli.Exit(cli.ExitUsage, err)
	}
	s := &state{}
	raw, err := f.readLog(cmd, t)
	if err == nil {
		s.log, err = eventlog.Parse(raw)
	}
	s.noLog = err
	bank := f.chooseBank(s.log)
	quote := &attestor.Quote{Bank: bank}
	if f.log == "" || f.device != "" {
		quote.PCRs, s.noTPM = readPCRs(cmd, t, &attestor.QuoteRequest{Bank: bank, PCRs: pcrs})
		s.tpm = s.noTPM == nil
	}
	switch {
	case s.log == nil && !s.tpm:
		return nil, errors.Join(s.noLog, s.noTPM)
	case s.log != nil && !s.tpm:
		quote.PCRs = s.log.Replay(bank)
		for pcr := range quote.PCRs {
			if !slices.Contains(pcrs, pcr) {
				delete(quote.PCRs, pcr)
			}
		}
	}
	s.Boot = boot.Of(quote, raw, true)
	return s, nil
}

func (f *flags) readLog(cmd *cobra.Command, t *tpm.TPM) ([]byte, error) {
	if f.log == "" {
		raw, err := t.EventLog()
		return raw, byFlags(err)
	}
	raw, err := input.Read(f.log, cmd.InOrStdin(), eventlog.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("read the event log: %w", err)
	}
	return raw, nil
}

func (f *flags) chooseBank(log *eventlog.Log) string {
	if f.bank != "" {
		return f.bank
	}
	return pcrs.BankOf(log)
}

func readPCRs(cmd *cobra.Command, t *tpm.TPM, req *attestor.QuoteRequest) (map[int][]byte, error) {
	var values map[int][]byte
	err := tpm.Do(cmd.Context(), func() (err error) {
		values, err = t.PCRs(cmd.Context(), req)
		return err
	})
	if err != nil {
		return nil, byFlags(err)
	}
	return values, nil
}

// byFlags makes an error name the flags of these commands; see ekreport.ByFlags.
func byFlags(err error) error {
	return ekreport.ByFlags(err, map[string]string{"device": "--device", "event_log_path": "--log"})
}

// printable removes from a text of a log whatever would control a terminal or change the direction of writing.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '.'
		}
		return r
	}, strings.ToValidUTF8(s, "."))
}
