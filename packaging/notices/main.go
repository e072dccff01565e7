// Notices writes what has to be shipped with a program: the licences of everything that is linked into it, or a
// bill of materials. It finds out from the program itself what that is.
//
//	notices licences PROGRAM...           the licences, as text
//	notices sbom NAME VERSION PROGRAM...  CycloneDX 1.6, as JSON
//
// The same programs give the same bytes. Run it in the folder of the module that the programs were built from;
// it downloads the modules that they need.
package main

import (
	"bytes"
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

func main() {
	var out bytes.Buffer
	if err := run(os.Args[1:], &out); err != nil {
		fmt.Fprintln(os.Stderr, "notices:", err)
		os.Exit(1)
	}
	if _, err := os.Stdout.Write(out.Bytes()); err != nil {
		fmt.Fprintln(os.Stderr, "notices:", err)
		os.Exit(1)
	}
}

func run(args []string, w io.Writer) error {
	switch {
	case len(args) > 1 && args[0] == "licences":
		return licences(args[1:], w)
	case len(args) > 3 && args[0] == "sbom":
		return sbom(args[1], args[2], args[3:], w)
	}
	return errors.New("usage: notices licences PROGRAM..., or notices sbom NAME VERSION PROGRAM")
}

// A module is linked into programs.
type module struct {
	path, version string
	programs      []string // their names
}

// linked returns the modules in programs, sorted by path, and the version of Go that has built them.
func linked(programs []string) (modules []module, toolchain string, err error) {
	all := map[string]*module{}
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, "", fmt.Errorf("what is linked into a program: %w", err)
		}
		if toolchain != "" && info.GoVersion != toolchain {
			return nil, "", fmt.Errorf("%s was built by %s, others by %s", program, info.GoVersion, toolchain)
		}
		toolchain = info.GoVersion
		for _, dep := range info.Deps {
			if dep.Replace != nil {
				dep = dep.Replace
			}
			m := all[dep.Path]
			if m == nil {
				m = &module{path: dep.Path, version: dep.Version}
				all[dep.Path] = m
			}
			if m.version != dep.Version {
				return nil, "", fmt.Errorf("%s is linked in the versions %s and %s", dep.Path, m.version, dep.Version)
			}
			m.programs = append(m.programs, filepath.Base(program))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(all)) {
		modules = append(modules, *all[path])
	}
	return modules, toolchain, nil
}

// licenceFile matches the names of files whose text has to be shipped with a program.
var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([.-].*)?$`)

// licences writes the licence texts of Go and of all modules. Modules with the same text share it.
func licences(programs []string, w io.Writer) error {
	modules, toolchain, err := linked(programs)
	if err != nil {
		return err
	}
	root, err := goEnv("GOROOT")
	if err != nil {
		return err
	}
	users := map[string][]string{}
	var order []string
	add := func(name, folder string) error {
		text, err := texts(folder)
		if err == nil && text == "" {
			err = errors.New("it has no licence")
		}
		if err != nil {
			return fmt.Errorf("the licence of %s: %w", name, err)
		}
		if users[text] == nil {
			order = append(order, text)
		}
		users[text] = append(users[text], name)
		return nil
	}
	if err := add("Go, "+toolchain, root); err != nil {
		return err
	}
	folders, err := foldersOf(modules)
	if err != nil {
		return err
	}
	for _, m := range modules {
		if err := add(m.path+" "+m.version, folders[m.path]); err != nil {
			return err
		}
	}
	for _, text := range order {
		rule := strings.Repeat("-", 79)
		if _, err := fmt.Fprintf(w, "%s\n%s:\n\n%s\n", rule, strings.Join(users[text], "\n"), text); err != nil {
			return err
		}
	}
	return nil
}

// texts returns the licence files in a folder, one after the other.
func texts(folder string) (string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for _, e := range entries {
		if !e.Type().IsRegular() || !licenceFile.MatchString(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(folder, e.Name())) //nolint:gosec // G304: of a module that is linked
		if err != nil {
			return "", err
		}
		all.WriteString(strings.TrimRight(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n") + "\n")
	}
	return all.String(), nil
}

// foldersOf returns the folders with the files of modules, by the modules' paths.
func foldersOf(modules []module) (map[string]string, error) {
	args := []string{"mod", "download", "-json"}
	for _, m := range modules {
		args = append(args, m.path+"@"+m.version)
	}
	out, err := exec.CommandContext(context.Background(), "go", args...).Output()
	if err != nil {
		return nil, fmt.Errorf("download the modules: %w", err)
	}
	folders := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var found struct{ Path, Dir string }
		if err := d.Decode(&found); err != nil {
			return nil, fmt.Errorf("download the modules: %w", err)
		}
		folders[found.Path] = found.Dir
	}
	return folders, nil
}

func goEnv(name string) (string, error) {
	out, err := exec.CommandContext(context.Background(), "go", "env", name).Output() //nolint:gosec // G204: a constant
	return strings.TrimSpace(string(out)), err
}

// The parts of a bill of materials.
type (
	bom struct {
		Format       string      `json:"bomFormat"`
		SpecVersion  string      `json:"specVersion"`
		Version      int         `json:"version"`
		Metadata     metadata    `json:"metadata"`
		Components   []component `json:"components"`
		Dependencies []dependsOn `json:"dependencies"`
	}
	metadata struct {
		Component component `json:"component"`
	}
	component struct {
		Type    string `json:"type"`
		Ref     string `json:"bom-ref"`
		Name    string `json:"name"`
		Version string `json:"version"`
		PURL    string `json:"purl,omitempty"`
	}
	dependsOn struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn,omitempty"`
	}
)

// sbom writes a bill of materials: the modules of each program.
func sbom(name, version string, programs []string, w io.Writer) error {
	modules, toolchain, err := linked(programs)
	if err != nil {
		return err
	}
	root := component{Type: "application", Ref: name, Name: name, Version: version}
	b := bom{Format: "CycloneDX", SpecVersion: "1.6", Version: 1, Metadata: metadata{root}}
	std := component{Type: "library", Ref: "std", Name: "std", Version: strings.TrimPrefix(toolchain, "go")}
	std.PURL = "pkg:golang/std@" + std.Version
	parts := []dependsOn{{Ref: name}}
	for _, program := range programs {
		ref := filepath.Base(program)
		b.Components = append(b.Components, component{Type: "application", Ref: ref, Name: ref, Version: version})
		parts[0].DependsOn = append(parts[0].DependsOn, ref)
		d := dependsOn{Ref: ref, DependsOn: []string{std.Ref}}
		for _, m := range modules {
			if slices.Contains(m.programs, ref) {
				d.DependsOn = append(d.DependsOn, m.path)
			}
		}
		parts = append(parts, d)
	}
	b.Components = append(b.Components, std)
	for _, m := range modules {
		purl := "pkg:golang/" + m.path + "@" + m.version
		b.Components = append(b.Components, component{"library", m.path, m.path, m.version, purl})
	}
	slices.SortFunc(parts[1:], func(a, b dependsOn) int { return cmp.Compare(a.Ref, b.Ref) })
	b.Dependencies = parts
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(b)
}
