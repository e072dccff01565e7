// Chartcheck tries, without a cluster, what a chart renders for both plugins:
//
//	chartcheck -dist FOLDER [-configmap NAME=FOLDER]... [-pubhash HASH] RENDERED
//
// For the server and for the agents, it lays out the volumes of the pod, runs each init container that has one of
// this project's images, or busybox, in a chroot of the image with its volumes, user and command, and then
// looks at what SPIRE's container would see: plugin_cmd must be this release's plugin, and the configuration
// must pass the plugin's validation there. FOLDER is what packaging/build makes, with the image with a shell.
//
// It needs root, and a mount namespace of its own, whose mounts end with it.
package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

func main() {
	c := &checker{configMaps: folders{}}
	flag.StringVar(&c.dist, "dist", "", "what packaging/build has made")
	flag.Var(c.configMaps, "configmap", "NAME=FOLDER, a ConfigMap that the chart does not make")
	flag.StringVar(&c.pubhash, "pubhash", "", "what get_tpm_pubhash prints, on a machine without a TPM")
	flag.Parse()
	var err error
	if flag.NArg() != 1 || c.dist == "" {
		err = errors.New("name what the chart has rendered, and -dist")
	} else {
		err = c.run(flag.Arg(0))
	}
	if c.work != "" {
		_ = os.RemoveAll(c.work) // whatever is left there is in a temporary folder
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chartcheck:", err)
		os.Exit(1)
	}
}

// folders has the path of each folder by its name.
type folders map[string]string

// String implements flag.Value.
func (f folders) String() string { return "" }

// Set implements flag.Value.
func (f folders) Set(text string) error {
	name, path, ok := strings.Cut(text, "=")
	if !ok {
		return errors.New("write NAME=FOLDER")
	}
	f[name] = path
	return nil
}

// A checker looks at one rendered chart.
type checker struct {
	dist, work string
	pubhash    string
	configMaps folders
	rendered   map[string]object
}

// The parts of Kubernetes' objects that this program reads.
type (
	object struct {
		Kind     string
		Metadata struct{ Name string }
		Data     map[string]string
		Spec     struct{ Template struct{ Spec pod } }
	}
	pod struct {
		SecurityContext            user
		InitContainers, Containers []container
		Volumes                    []struct {
			Name      string
			ConfigMap *struct{ Name string }
		}
	}
	user      struct{ RunAsUser, RunAsGroup *int }
	container struct {
		Name, Image     string
		Command, Args   []string
		SecurityContext user
		VolumeMounts    []mount
	}
	mount struct {
		Name, MountPath string
		ReadOnly        bool
	}
)

func (c *checker) run(file string) error {
	text, err := os.ReadFile(file) //nolint:gosec // G304: an argument
	if err != nil {
		return err
	}
	c.rendered = map[string]object{}
	for _, doc := range regexp.MustCompile(`(?m)^---$`).Split(string(text), -1) {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			return fmt.Errorf("what the chart has rendered: %w", err)
		}
		c.rendered[o.Kind+" "+o.Metadata.Name] = o
	}
	if c.work, err = os.MkdirTemp("", "chartcheck"); err != nil {
		return err
	}
	return errors.Join(
		c.try("StatefulSet spire-server", "tpm-attestor-server", "server.conf"),
		c.try("DaemonSet spire-agent", "tpm-attestor-agent", "agent.conf"),
	)
}

// try tries one side.
func (c *checker) try(name, program, config string) error {
	o, ok := c.rendered[name]
	if !ok {
		return fmt.Errorf("the chart has no %s", name)
	}
	p := o.Spec.Template.Spec
	if len(p.Containers) == 0 {
		return fmt.Errorf("%s has no container", name)
	}
	volumes, err := c.layOut(p, name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	ran := 0
	for _, init := range p.InitContainers {
		image := imageOf(init.Image)
		if image == "" {
			continue
		}
		if init.Name != "chown" { // of a volume that is mounted elsewhere
			ran++
		}
		out, err := c.runIn(image, p, init, volumes)
		if err != nil {
			return fmt.Errorf("%s, init container %s in %s: %w\n%s", name, init.Name, image, err, out)
		}
		fmt.Printf("%s: %s ran in %s: %s\n", name, init.Name, image, cmp.Or(strings.TrimSpace(out), "no output"))
	}
	if ran == 0 {
		return fmt.Errorf("%s: no init container is of our images", name)
	}
	return c.inspect(name, p, volumes, program, config)
}

// imageOf returns the name of the image that stands for an image of the chart; empty if none does.
func imageOf(reference string) string {
	name := regexp.MustCompile(`^(.*/)?([^/:@]+)[^/]*$`).ReplaceAllString(reference, "$2")
	switch {
	case strings.HasPrefix(name, "spire-tpm-attestor"):
		return name
	case name == "busybox":
		return "spire-tpm-attestor-shell" // it has the same commands
	}
	return ""
}

// layOut makes a folder for each volume of a pod and returns them by name.
func (c *checker) layOut(p pod, name string) (folders, error) {
	base := filepath.Join(c.work, strings.ReplaceAll(name, " ", "-"))
	volumes := folders{}
	add := func(volume string, data map[string]string) error {
		dir := filepath.Join(base, volume)
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // G301: pods have several users
			return err
		}
		volumes[volume] = dir
		if data == nil {
			return os.Chmod(dir, 0o777) //nolint:gosec // G302: an emptyDir is open to all users of the pod
		}
		return publish(dir, data)
	}
	for _, v := range p.Volumes {
		var data map[string]string
		if v.ConfigMap != nil {
			var err error
			if data, err = c.configMap(v.ConfigMap.Name); err != nil {
				return nil, err
			}
		}
		if err := add(v.Name, data); err != nil {
			return nil, err
		}
	}
	// A StatefulSet's claims are volumes too.
	for _, k := range slices.Concat(p.InitContainers, p.Containers) {
		for _, m := range k.VolumeMounts {
			if volumes[m.Name] == "" {
				if err := add(m.Name, nil); err != nil {
					return nil, err
				}
			}
		}
	}
	return volumes, nil
}

// configMap returns what a ConfigMap holds.
func (c *checker) configMap(name string) (map[string]string, error) {
	if o, ok := c.rendered["ConfigMap "+name]; ok {
		return o.Data, nil
	}
	dir, ok := c.configMaps[name]
	if !ok {
		return map[string]string{}, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	data := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name())) //nolint:gosec // G304: an argument
		if err != nil {
			return nil, err
		}
		data[e.Name()] = string(text)
	}
	return data, nil
}

// publish lays a ConfigMap out as the kubelet does.
func publish(dir string, data map[string]string) error {
	const version = "..2026_01_01_00_00_00.1"
	if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil { //nolint:gosec // G301: as the kubelet
		return err
	}
	if err := os.Symlink(version, filepath.Join(dir, "..data")); err != nil {
		return err
	}
	for name, text := range data {
		err := errors.Join(
			os.WriteFile(filepath.Join(dir, version, name), []byte(text), 0o644), //nolint:gosec // G306: as the kubelet
			os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// inspect looks at what SPIRE's container would see.
func (c *checker) inspect(name string, p pod, volumes folders, program, config string) error {
	spire := p.Containers[0]
	root, err := os.MkdirTemp(c.work, "spire")
	if err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil { //nolint:gosec // G302: the container has another user
		return err
	}
	unmount, err := bind(root, spire.VolumeMounts, volumes)
	if err != nil {
		return err
	}
	defer unmount()
	at := ""
	for _, m := range spire.VolumeMounts {
		if m.Name == "spire-config" {
			at = filepath.Join(m.MountPath, config)
		}
	}
	text, err := os.ReadFile(filepath.Join(root, at)) //nolint:gosec // G304: we have made it
	if err != nil {
		return fmt.Errorf("%s: SPIRE's configuration: %w", name, err)
	}
	plugin, sum, err := pluginOf(text)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	tool := filepath.Join(root, "tpm-attestor")
	if err := c.programs(map[string]string{"tpm-attestor": tool}); err != nil {
		return err
	}
	if err := c.isOurs(filepath.Join(root, plugin), program, sum); err != nil {
		return fmt.Errorf("%s: plugin_cmd %q: %w", name, plugin, err)
	}
	as := who(p.SecurityContext, spire.SecurityContext)
	for _, command := range [][]string{{plugin, "-version"}, {"/tpm-attestor", "validate", at}} {
		out, err := inRoot(root, as, command...)
		if err != nil {
			return fmt.Errorf("%s: %s: %w\n%s", name, strings.Join(command, " "), err, out)
		}
		fmt.Printf("%s: %s: %s\n", name, strings.Join(command, " "), strings.TrimSpace(out))
	}
	return nil
}

// pluginOf returns plugin_cmd and plugin_checksum of the node attestor "tpm" in SPIRE's configuration.
func pluginOf(text []byte) (cmd, sum string, err error) {
	var all struct {
		Plugins struct {
			NodeAttestor []map[string]struct {
				Cmd string `json:"plugin_cmd"`
				Sum string `json:"plugin_checksum"`
			}
		} `json:"plugins"`
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return "", "", fmt.Errorf("SPIRE's configuration: %w", err)
	}
	for _, plugins := range all.Plugins.NodeAttestor {
		if p, ok := plugins["tpm"]; ok {
			return p.Cmd, p.Sum, nil
		}
	}
	return "", "", errors.New("SPIRE's configuration has no node attestor tpm")
}

// isOurs checks that a file is a program of this release, by the line in SHA256SUMS and by the configured sum.
func (c *checker) isOurs(path, program, configured string) error {
	content, err := os.ReadFile(path) //nolint:gosec // G304: we have made it
	if err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	got := hex.EncodeToString(sum[:])
	sums, err := os.ReadFile(filepath.Join(c.dist, "SHA256SUMS"))
	if err != nil {
		return err
	}
	line := regexp.MustCompile(`(?m)^` + got + `  \S+_linux_` + runtime.GOARCH + `/` + program + `$`)
	switch {
	case !line.Match(sums):
		return fmt.Errorf("its sum %s is not that of %s in SHA256SUMS", got, program)
	case configured != "" && configured != got:
		return fmt.Errorf("its sum is %s, configured is %s", got, configured)
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o555 != 0o555:
		return fmt.Errorf("its mode is %v: SPIRE could not run it", info.Mode())
	}
	return nil
}
