package sqltable_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// What a connection would fail over is found without one, and the password is not shown.
func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad := file("good", "postgres://u:hunter2@localhost/x"), file("bad", "postgres://u:hunter2@[/x")
	for _, tt := range []struct {
		cfg  sqltable.Config
		want []string
	}{
		{sqltable.Config{Dialect: sqltable.Postgres, DSNPath: good}, nil},
		{sqltable.Config{Dialect: sqltable.Postgres, DSNPath: bad}, []string{"dsn_path"}},
		{sqltable.Config{Dialect: sqltable.MySQL, DSNPath: good}, []string{"dsn_path"}},
		{sqltable.Config{Dialect: sqltable.Postgres, DSNPath: dir}, []string{"dsn_path"}},
		{sqltable.Config{Dialect: sqltable.Postgres, DSNPath: good, CAPath: bad}, []string{"ca_path"}},
	} {
		found := map[string]string{}
		tt.cfg.CheckFiles(func(field string, err error) { found[field] = err.Error() })
		if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, tt.want) {
			t.Errorf("%+v: %q", tt.cfg, found)
		}
		for _, text := range found {
			if strings.Contains(text, "hunter2") {
				t.Errorf("the password is shown: %s", text)
			}
		}
	}
}
