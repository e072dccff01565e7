package evict

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir/hashdirtest"
)

// A mount that hangs, or gives errors, evicts nobody, and neither keeps the evicter from looking at a
// whole fleet nor a deny list from working. When it answers again, removals count again.
func TestMountHangs(t *testing.T) {
	const fleet = 300
	f, dir, files := startSPIRE(t), t.TempDir(), map[string]string{}
	hashes := f.fleet(fleet)
	for _, hash := range hashes[1:] { // the first was removed while the mount hung
		files[hash] = ""
	}
	mount := hashdirtest.MountFault(t, files)
	if err := os.WriteFile(filepath.Join(dir, "stolen"), []byte("# nobody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, f, dir, fmt.Sprintf(`
		check_timeout = "2s"
		source "hash_dir" "mount" { path = %q }
		source "hash_file" "stolen" {
			path        = "DIR/stolen"
			allow_empty = true
		}
		allow "mount" { any = ["mount"] }
		deny "stolen" { any = ["stolen"] }`, mount.Dir), options{})
	mount.Hang()
	t.Cleanup(mount.Heal)
	b.looks()
	b.want("", alarmSources)
	if b.counts.CannotTell != fleet {
		t.Errorf("%+v", b.counts)
	}
	b.write("stolen", hashes[4]+"\n")
	b.looks()
	b.want("5", alarmSources)
	mount.Heal()
	for b.counts.CannotTell > 0 { // until the calls that hung have returned
		b.after(interval)
	}
	b.looks()
	b.want("5 1")
}
