package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakeApt is an apt-get that fails twice because another program holds its lock.
const fakeApt = `#!/bin/sh
echo "$@" >>"$STATE"
[ "$(wc -l <"$STATE")" -gt 2 ] && exit 0
echo "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (unattended-upgr)"
exit 100
`

// A machine that has just been installed upgrades itself, and holds the package manager's locks
// for some minutes. The first command that a new user runs must wait for that, and say so,
// instead of failing.
func TestInstallWaitsForLocks(t *testing.T) {
	bin := t.TempDir()
	for _, tool := range []string{"cat", "cut", "env", "go", "grep", "kill", "mktemp", "rm", "tail", "wc"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
	// The fakes: the user is root, pauses take no time and print no progress, and no policy for
	// services is written.
	for tool, script := range map[string]string{
		"apt-get": fakeApt, "id": "#!/bin/sh\necho 0\n", "sleep": "#!/bin/sh\n[ $1 != 1 ]\n", "sh": "#!/bin/sh\n",
	} {
		if err := os.WriteFile(filepath.Join(bin, tool), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	state := filepath.Join(t.TempDir(), "calls")
	install := exec.CommandContext(t.Context(), "./install.sh", "demo")
	install.Env = append(os.Environ(), "PATH="+bin, "STATE="+state)
	out, err := install.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := "waiting for another program that installs packages: Could not get lock " +
		"/var/lib/dpkg/lock-frontend. It is held by process 7 (unattended-upgr)"
	if n := strings.Count(string(out), want); n != 1 {
		t.Errorf("it says %d times for whom it waits:\n%s", n, out)
	}
	calls, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(calls); strings.Count(got, "install -y") != 3 || strings.Contains(got, "update") {
		t.Errorf("apt-get was called with\n%s", got)
	}
}
