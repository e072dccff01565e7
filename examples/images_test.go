package examples_test

import (
	"regexp"
	"strings"
	"testing"
)

// Values for charts name images of a release, and programs that are in them: a pod with another name does not
// start, and nobody notices before a cluster does. make try-charts runs what charts make of the values.
func TestValuesNameImages(t *testing.T) {
	image := regexp.MustCompile(`(?:repository: |registry\.example\.org/)(spire-tpm-attestor[a-z-]*)`)
	program := regexp.MustCompile(`(?:plugin_cmd: |command: \[")(/tpm-attestor-[a-z]+)\b`)
	found := 0
	for _, name := range []string{"values.yaml", "values-image.yaml", "values-tpm-direct.yaml"} {
		values := read(t, "examples/kubernetes/"+name)
		for _, m := range image.FindAllStringSubmatch(values, -1) {
			found++
			side := strings.TrimPrefix(m[1], "spire-tpm-attestor-")
			if side != "server" && side != "agent" && side != "shell" {
				t.Errorf("%s: a release has no image %s", name, m[1])
			}
			if !strings.Contains(read(t, "docs/install.md"), "`"+m[1]+"`") {
				t.Errorf("%s: docs/install.md does not know the image %s", name, m[1])
			}
		}
		for _, m := range program.FindAllStringSubmatch(values, -1) {
			found++
			if !strings.Contains(values, "spire"+strings.Replace(m[1], "/", "-", 1)) {
				t.Errorf("%s: no image in it has %s", name, m[1])
			}
		}
	}
	if found < 10 {
		t.Errorf("found only %d images and programs: is the test looking in the right place?", found)
	}
	made := read(t, "packaging/image/main.go")
	for _, name := range []string{`"spire-tpm-attestor-" + plugin`, `"spire-tpm-attestor-shell"`} {
		if !strings.Contains(made, name) {
			t.Errorf("packaging/image does not make %s", name)
		}
	}
}
