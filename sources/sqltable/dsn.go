package sqltable

import (
	"fmt"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// maxDSN is the longest file of a DSN, in bytes.
const maxDSN = 16 << 10

// readDSN returns the data source name in a file. It contains the password, so no error and no log
// may show it.
func readDSN(path string) (string, error) {
	content, err := smallfile.Read(path, maxDSN)
	if err != nil {
		return "", fmt.Errorf("read the DSN: %w", err)
	}
	dsn := strings.TrimSpace(string(content))
	if dsn == "" || strings.ContainsAny(dsn, "\x00\n\r") {
		return "", fmt.Errorf("there is no DSN in %q: write one line", path)
	}
	return dsn, nil
}
