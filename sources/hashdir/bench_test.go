package hashdir

import (
	"testing"
)

// BenchmarkCheck looks for one machine in a directory of a thousand others, half of them in
// shards.
func BenchmarkCheck(b *testing.B) {
	for _, test := range []struct{ name, file, content string }{
		{"flat", hash(1), ""},
		{"sharded", hash(1)[:2] + "/" + hash(1), ""},
		{"named", hash(1), `{"name": "us-east-17", "labels": ["rack:12", "env:prod"]}`},
		{"miss", "", ""},
	} {
		b.Run(test.name, func(b *testing.B) {
			dir := b.TempDir()
			write(b, dir, hash(1)[:2]+"/"+hash(1)[:63]+"0", "")
			for i := range 500 {
				write(b, dir, hash(1000+i), "")
				write(b, dir, hash(2000 + i)[:2]+"/"+hash(2000+i), "")
			}
			if test.file != "" {
				write(b, dir, test.file, test.content)
			}
			s, ev := open(b, Config{Path: dir}), evidence(hash(1))
			b.ReportAllocs()
			for b.Loop() {
				if v, err := s.Check(b.Context(), ev); err != nil || v.Listed != (test.file != "") {
					b.Fatal(v, err)
				}
			}
		})
	}
}
