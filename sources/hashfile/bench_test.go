package hashfile

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// BenchmarkReload is a list of a million machines from the file to being served,
// over reading and decoding it into a slice.
func BenchmarkReload(b *testing.B) {
	const machines = 1_000_000
	list := many(0, machines, "")
	list = strings.ReplaceAll(list, " \n", "\n")
	path := listIn(b, list)
	b.Run("floor", func(b *testing.B) {
		for b.Loop() {
			content, err := os.ReadFile(path)
			must(b, err)
			keys := make([][32]byte, machines)
			for i := range keys {
				line := content[:64]
				content = content[65:]
				if _, err := hex.Decode(keys[i][:], line); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("text", func(b *testing.B) {
		reload(b, path)
	})
	keys := bytes.TrimSuffix(bytes.ReplaceAll([]byte(list), []byte("\n"), []byte(`","`)), []byte(`,"`))
	path = listIn(b, `{"keys": ["`+string(keys)+`]}`)
	b.Run("json", func(b *testing.B) {
		reload(b, path)
	})
}

// reload refreshes a source that has never seen the file.
func reload(b *testing.B, path string) {
	b.Helper()
	ev := &sources.Evidence{EKHash: hash(1)}
	for b.Loop() {
		s := open(b, Config{Path: path})
		must(b, s.Load(context.Background()))
		if v, err := s.Check(context.Background(), ev); err != nil || !v.Listed {
			b.Fatalf("%+v, %v", v, err)
		}
	}
}
