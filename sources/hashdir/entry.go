package hashdir

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Limits of what an entry may say about its machine.
const (
	maxContent = 64 << 10 // bytes; a longer file is not looked into
	maxValue   = 255      // bytes of a name or a label
	maxLabels  = 64
)

// parseEntry returns what the content of an entry says about its machine:
// nothing, where the first byte that is not blank does not begin a JSON object.
// A field that is there twice, a value that breaks the limits and anything
// behind the object are errors; a label that is there twice counts once.
func parseEntry(content []byte) (sources.Attributes, error) {
	content = bytes.TrimLeft(content, " \t\r\n")
	if len(content) == 0 || content[0] != '{' || len(content) > maxContent {
		return sources.Attributes{}, nil
	}
	var entry struct {
		Name   string   `json:"name"`
		Labels []string `json:"labels"`
	}
	if err := json.Unmarshal(content, &entry); err != nil {
		return sources.Attributes{}, fmt.Errorf("content: %w", err)
	}
	if err := checkValue(entry.Name); err != nil {
		return sources.Attributes{}, fmt.Errorf("name: %w", err)
	}
	if len(entry.Labels) > maxLabels {
		return sources.Attributes{}, fmt.Errorf("%d labels, at most %d are allowed", len(entry.Labels), maxLabels)
	}
	attrs := sources.Attributes{Name: entry.Name}
	for i, label := range entry.Labels {
		if label == "" {
			return sources.Attributes{}, fmt.Errorf("label %d is empty", i+1)
		}
		if err := checkValue(label); err != nil {
			return sources.Attributes{}, fmt.Errorf("label %d: %w", i+1, err)
		}
		if !slices.Contains(attrs.Labels, label) {
			attrs.Labels = append(attrs.Labels, label)
		}
	}
	return attrs, nil
}

// checkValue checks a name or a label, which are to become selectors and lines
// in logs.
func checkValue(s string) error {
	if len(s) > maxValue {
		return fmt.Errorf("%d bytes, at most %d are allowed", len(s), maxValue)
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		return errors.New("has a control character in it")
	}
	return nil
}
