package hashdir

import (
	"bytes"
	"fmt"

	"github.com/go-json-experiment/json"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// maxContent is the maximum length of an entry's content, in bytes. A longer file is an entry too,
// but it is not read.
const maxContent = 64 << 10

// parseEntry returns what the content of an entry says about its machine. Content says nothing
// unless it begins with a JSON object, after an optional byte order mark and white space. A
// duplicate field, a value that exceeds the limits of sources.Attributes, and anything after the
// object are errors. Duplicate labels count once, and blanks around a name or a label are removed.
func parseEntry(content []byte) (sources.Attributes, error) {
	content = objectIn(content)
	if content == nil {
		return sources.Attributes{}, nil
	}
	var entry struct {
		Name   string   `json:"name"`
		Labels []string `json:"labels"`
	}
	if err := json.Unmarshal(content, &entry); err != nil {
		return sources.Attributes{}, fmt.Errorf("content: %w", err)
	}
	attrs, err := sources.Attributes{Name: entry.Name, Labels: entry.Labels}.Tidy()
	if err != nil {
		return sources.Attributes{}, fmt.Errorf("content: %w", err)
	}
	return attrs, nil
}

// objectIn returns the content from its JSON object on, or nil if it does not begin with one.
func objectIn(content []byte) []byte {
	content = bytes.TrimLeft(smallfile.TrimMark(content), " \t\r\n")
	if len(content) == 0 || content[0] != '{' || len(content) > maxContent {
		return nil
	}
	return content
}
