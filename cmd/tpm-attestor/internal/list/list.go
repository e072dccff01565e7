// Package list has the commands that make, check, compare and sign lists.
package list

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

// New returns the command list.
func New(output *cli.Format) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use:   "list",
		Short: "Make, check, compare and sign lists of EK hashes",
		Long: `list works with lists of EK hashes in the forms that servers read: text, JSON, and folders with a file
for each machine. It reads them with the servers' own parsers.`,
		Example: cli.Examples(
			"tpm-attestor list build machines.csv --to machines.json",
			"tpm-attestor list lint machines.json",
		),
	}, newLint(output), newBuild(output), newConvert(output), newDiff(output), newSign(output),
		newVerify(output))
}

// maxList is the size of the largest list that is read, in bytes. It is the limit of a server without
// max_bytes.
const maxList = list.DefaultMaxBytes

// A document is a list that was parsed, of EK hashes or of boot profiles.
type document interface {
	Header() list.Header
	Len() int
	Warnings() []string
}

// loadAsServer loads a list with the server's code, so that it refuses whatever a server would refuse. If it
// refuses the list, the error is a finding.MistakesError.
func loadAsServer(ctx context.Context, file string, data []byte, opts ekhashes.Options) (document, error) {
	return loadSigned(ctx, file, list.Copy{Data: data, At: time.Now()}, opts, nil)
}

// loadSigned loads a list as loadAsServer does, and verifies its signature if signing is not nil.
func loadSigned(
	ctx context.Context, file string, c list.Copy, opts ekhashes.Options, signing *list.Signing,
) (document, error) {
	parse := func(data []byte) (*ekhashes.Document, error) { return ekhashes.Parse(data, opts) }
	d, err := load(ctx, file, c, parse, signing)
	if err != nil && hasProfiles(c.Data) {
		profiles := func(data []byte) (*bootprofiles.Document, error) {
			return bootprofiles.Parse(data, bootprofiles.Options{})
		}
		return load(ctx, file, c, profiles, signing)
	}
	return d, err
}

// load loads a list of the kind that parse reads.
func load[T list.Content[T]](
	ctx context.Context, file string, c list.Copy, parse list.Parse[T], signing *list.Signing,
) (document, error) {
	l, err := list.New(parse, origin(c), list.Config{Signing: signing})
	if err != nil {
		return nil, err
	}
	if err := l.Load(ctx); err != nil {
		return nil, finding.MistakesError(finding.MistakesIn(file, err))
	}
	d, err := l.Current()
	if err != nil {
		return nil, err
	}
	return d, nil
}

// hasProfiles reports whether a list is one of boot profiles.
func hasProfiles(data []byte) bool {
	var fields struct {
		Keys     json.RawMessage `json:"keys"`
		Profiles json.RawMessage `json:"profiles"`
	}
	return json.Unmarshal(data, &fields) == nil && fields.Keys == nil && fields.Profiles != nil
}

// origin is a list.Origin that always returns the same copy.
type origin list.Copy

// Read implements list.Origin.
func (o origin) Read(context.Context, string) (list.Copy, error) { return list.Copy(o), nil }

// Warnings implements list.Origin.
func (origin) Warnings() []string { return nil }

// An entryJSON is the JSON form of an entry of a list.
type entryJSON struct {
	Hash   string   `json:"hash"`
	Name   string   `json:"name,omitempty"`
	Labels []string `json:"labels,omitempty"`
}

func toJSON(e ekhashes.Entry) entryJSON { return entryJSON{e.Hash.String(), e.Name, e.Labels} }

// headerJSON is the JSON form of a list's header.
type headerJSON struct {
	Serial  *uint64 `json:"serial,omitempty"`
	Expires string  `json:"expires,omitempty"`
	List    string  `json:"list,omitempty"`
}

func headerToJSON(h list.Header) headerJSON {
	j := headerJSON{List: h.Name}
	if h.HasSerial {
		j.Serial = &h.Serial
	}
	if !h.Expires.IsZero() {
		j.Expires = h.Expires.UTC().Format(time.RFC3339)
	}
	return j
}

// words returns a header in words, or an empty string if the header is empty.
func words(h list.Header) string {
	var parts []string
	if h.HasSerial {
		parts = append(parts, fmt.Sprintf("serial %d", h.Serial))
	}
	if !h.Expires.IsZero() {
		parts = append(parts, "expires "+h.Expires.UTC().Format(time.RFC3339))
	}
	if h.Name != "" {
		parts = append(parts, fmt.Sprintf("list %q", h.Name))
	}
	return strings.Join(parts, ", ")
}

// printMessages prints each message on a line of standard error, with before in front of it.
func printMessages[T any](cmd *cobra.Command, before string, messages []T) error {
	var text strings.Builder
	for _, m := range messages {
		fmt.Fprintf(&text, "%s%v\n", before, m)
	}
	_, err := cmd.ErrOrStderr().Write([]byte(text.String()))
	return err
}
