package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/preview"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// maxTests is the size of the largest file of expected decisions that is read, in bytes.
const maxTests = 16 << 20

// expectations is the content of a file of expected decisions.
type expectations struct {
	Version int           `json:"version"`
	Tests   []expectation `json:"tests"`
}

// An expectation is what a server should decide about a machine. What it leaves out is not checked.
type expectation struct {
	Name     string `json:"name"`
	EK       string `json:"ek"`
	Decision string `json:"decision"`
	// Rules are all the rules that must hold. Selectors must be among the machine's.
	Rules     []string `json:"rules"`
	Selectors []string `json:"selectors"`
	SPIFFEID  string   `json:"spiffe_id"`
}

// tested is the JSON output of check --tests.
type tested struct {
	Version int          `json:"version"`
	Passed  int          `json:"passed"`
	Failed  int          `json:"failed"`
	Tests   []testResult `json:"tests"`
}

type testResult struct {
	Name     string   `json:"name"`
	Passed   bool     `json:"passed"`
	Problems []string `json:"problems"`
	Decision string   `json:"decision"`
	Cause    string   `json:"cause,omitempty"`
}

// readExpectations reads a file of expected decisions. It refuses unknown members, so that a misspelled test does
// not pass.
func readExpectations(name string, stdin io.Reader) (*expectations, error) {
	content, err := input.Read(name, stdin, maxTests)
	if err != nil {
		return nil, fmt.Errorf("read the tests: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(content))
	d.DisallowUnknownFields()
	var e expectations
	if err := d.Decode(&e); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: there is something behind the object", name)
	}
	switch {
	case e.Version != 1:
		return nil, fmt.Errorf(`%s: "version" must be 1`, name)
	case len(e.Tests) == 0:
		return nil, fmt.Errorf("%s: there is no test in it", name)
	}
	known := []string{preview.Admitted, preview.Refused, preview.Unavailable, preview.Depends}
	for i, t := range e.Tests {
		if t.EK == "" || !slices.Contains(known, t.Decision) {
			return nil, fmt.Errorf(`%s: tests[%d] (%q): "ek" must be an EK hash or a file, and "decision" one of %s`,
				name, i, t.Name, strings.Join(known, ", "))
		}
	}
	return &e, nil
}

// runTests checks a file of expected decisions.
func runTests(cmd *cobra.Command, f *flags, output cli.Format, configName string) error {
	e, err := readExpectations(f.tests, cmd.InOrStdin())
	if err != nil {
		return cli.Exit(cli.ExitUsage, err)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), preview.Timeout)
	defer cancel()
	k, err := preview.Open(ctx, cmd, configName, f.Network)
	if err != nil {
		return err
	}
	defer k.Close()
	p := cli.StartProgress(cmd.ErrOrStderr(), "checking decisions", "tests")
	defer p.End()
	all := tested{Version: 1, Tests: []testResult{}}
	for _, want := range e.Tests {
		ek := want.EK
		if _, err := sources.ParseEKHash(ek); err != nil && !filepath.IsAbs(ek) {
			ek = filepath.Join(filepath.Dir(f.tests), ek)
		}
		s, err := preview.Named(ek, nil)
		if err != nil {
			return fmt.Errorf("%s: %q: %w", f.tests, want.Name, err)
		}
		got, err := k.Check(ctx, s)
		if err != nil {
			return err
		}
		result := want.compare(got)
		all.Tests = append(all.Tests, result)
		if result.Passed {
			all.Passed++
		} else {
			all.Failed++
		}
		p.Add(1)
	}
	p.End()
	if err := all.print(cmd, output); err != nil {
		return err
	}
	if all.Failed > 0 {
		return cli.Exit(cli.ExitRefused, nil)
	}
	return nil
}

// compare compares a decision with the expected one.
func (e *expectation) compare(got *preview.Report) testResult {
	r := testResult{Name: e.Name, Problems: []string{}, Decision: got.Decision, Cause: got.Cause}
	if r.Name == "" {
		r.Name = e.EK
	}
	fail := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	if got.Decision != e.Decision {
		fail("the decision is %s, not %s", got.Decision, e.Decision)
	}
	var rules []string
	for _, s := range got.Selectors {
		if rule, ok := strings.CutPrefix(s, "rule:"); ok {
			rules = append(rules, rule)
		}
	}
	slices.Sort(e.Rules)
	if e.Rules != nil && !slices.Equal(rules, e.Rules) {
		fail("the rules that hold are [%s], not [%s]", strings.Join(rules, " "), strings.Join(e.Rules, " "))
	}
	for _, s := range e.Selectors {
		if s = strings.TrimPrefix(s, "tpm:"); !slices.Contains(got.Selectors, s) {
			fail("the selector %s is missing", s)
		}
	}
	if e.SPIFFEID != "" && got.SPIFFEID != e.SPIFFEID {
		fail("the SPIFFE ID is %q, not %q", got.SPIFFEID, e.SPIFFEID)
	}
	r.Passed = len(r.Problems) == 0
	return r
}

func (t *tested) print(cmd *cobra.Command, output cli.Format) error {
	if output == cli.JSON {
		return cli.PrintJSON(cmd, t)
	}
	var b strings.Builder
	for _, r := range t.Tests {
		if r.Passed {
			fmt.Fprintf(&b, "ok    %s: %s\n", r.Name, r.Decision)
			continue
		}
		fmt.Fprintf(&b, "FAIL  %s: %s\n", r.Name, strings.Join(r.Problems, "; "))
		if r.Cause != "" {
			fmt.Fprintf(&b, "      %s\n", r.Cause)
		}
	}
	fmt.Fprintf(&b, "%d passed, %d failed\n", t.Passed, t.Failed)
	return cli.PrintText(cmd, b.String())
}
