package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/hcl/ast"

	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// A File is the text of a configuration file. If the text has a block called plugins, it is the configuration of
// SPIRE Server or SPIRE Agent, and the File is about the trust domain and the plugins "tpm" in it. Otherwise the text
// is the content of plugin_data. Loader.Open returns a File. It does not change, and is safe for concurrent use.
type File struct {
	loader *Loader
	text   string
	whole  spireFile          // without plugins if the text is plugin_data alone
	found  map[string]*plugin // the plugins "tpm" by their types
}

// pluginName is the name of this project's plugins of all types.
const pluginName = "tpm"

// The types of this project's plugins.
const (
	attestorType   = "NodeAttestor"
	composerType   = "CredentialComposer"
	keyManagerType = "KeyManager"
)

// called returns the name of this project's plugin of a type, as messages have it.
func called(kind string) string { return kind + ` "` + pluginName + `"` }

// pluginsKey is the path of problems with the blocks of plugins.
const pluginsKey = "plugins"

// A plugin is a plugin "tpm" in a configuration of SPIRE.
type plugin struct {
	there bool
	off   bool // enabled = false, so SPIRE does not load it
	data  Data
	// err says why data is not known. It wraps a *lookError if the file could not be looked at.
	err error
}

// loaded reports whether SPIRE loads the plugin.
func (p *plugin) loaded() bool { return p.there && !p.off }

// A lookError says that a file could not be looked at, so that its content may be right or wrong.
type lookError struct{ error }

func (e *lookError) Unwrap() error { return e.error }

// Open reads the files that the plugins "tpm" name in plugin_data_file, as SPIRE does when it starts and on
// SIGUSR1: a relative path begins at the working directory of the process. It waits for a file system no longer
// than Load does. If something is wrong with a file, Load, Parse, AgentData and KeyManagerData return the error.
func (l *Loader) Open(ctx context.Context, text string) *File {
	f := &File{loader: l, text: text}
	whole, err := wholeFile(text)
	if err != nil || whole.Plugins == nil {
		return f // it is read as plugin_data, and a mistake shows then
	}
	f.whole, f.found = whole, map[string]*plugin{}
	kinds := []string{attestorType, composerType}
	if f.isAgents() {
		kinds = []string{attestorType, keyManagerType}
	}
	for _, kind := range kinds {
		f.found[kind] = l.plugin(ctx, whole.Plugins, kind)
	}
	return f
}

// plugin returns the plugin of a type.
func (l *Loader) plugin(ctx context.Context, plugins ast.Node, kind string) *plugin {
	b, err := pluginOf(plugins, kind)
	if b == nil || err != nil {
		return &plugin{err: err}
	}
	p := &plugin{there: true, off: b.Enabled != nil && !*b.Enabled}
	switch {
	case b.Data != nil && b.DataFile != nil: // an error even if enabled = false
		p.err = errors.New("it has plugin_data and plugin_data_file, and SPIRE refuses both at once: keep one")
	case p.off:
	case b.DataFile != nil:
		p.data.File = *b.DataFile
		p.data.Text, p.err = l.dataFile(ctx, *b.DataFile)
	default:
		p.data.Text, err = b.print()
		p.err = err
	}
	if p.err != nil {
		p.err = fmt.Errorf("%s: %w", called(kind), p.err)
	}
	return p
}

// dataFile reads the file that a plugin_data_file names.
func (l *Loader) dataFile(ctx context.Context, path string) (text string, err error) {
	switch {
	case path == "":
		return "", errors.New("plugin_data_file is empty: name a file, or remove the key")
	case strings.Contains(path, "$"):
		return "", fmt.Errorf("plugin_data_file: %q has a $, and what SPIRE with -expandEnv writes in its place is "+
			"not known here: write the path itself", shorten(path))
	}
	var data []byte
	var failed error
	waited := l.questions.Do(ctx, l.timeout, func(context.Context) error {
		data, failed = l.readData(path)
		return nil
	})
	if waited != nil { // readData may still be running: data and failed must not be read
		return "", &lookError{fmt.Errorf("plugin_data_file: %q: the file system does not answer: %w",
			shorten(path), waited)}
	}
	return string(data), badDataFile(path, failed)
}

// readData asks the file system for the content of a file.
func (l *Loader) readData(path string) ([]byte, error) {
	there, err := l.ask(file{path: path, regular: true})
	if err != nil {
		return nil, err
	}
	if size := there.info.Size(); size > maxText {
		return nil, fmt.Errorf("%q is %d bytes long; at most %d are allowed: keep lists in files of their own, "+
			"which a source names", shorten(path), size, maxText)
	}
	return smallfile.Read(path, maxText)
}

// badDataFile adds to an error about a plugin_data_file what to do about it.
func badDataFile(path string, err error) error {
	var unsure unsureError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unsure):
		err = unsure.err // the text of an unsureError is about sources, which this file is not
	case isMissing(err) && !filepath.IsAbs(path):
		return fmt.Errorf("plugin_data_file: %w; SPIRE takes a relative path from its working directory: run this "+
			"there, too", err)
	}
	if _, opened := errors.AsType[*fs.PathError](err); !opened {
		return fmt.Errorf("plugin_data_file: %w", err)
	}
	what := "plugin_data_file cannot be read"
	if errors.Is(err, fs.ErrPermission) {
		return &lookError{fmt.Errorf("%s: %w: run this as a user who may read it, such as SPIRE's", what, err)}
	}
	return &lookError{fmt.Errorf("%s: %w", what, err)}
}

// isAgents reports whether this is a configuration of SPIRE Agent.
func (f *File) isAgents() bool {
	return f.whole.Plugins != nil && f.whole.Agent != nil && f.whole.Server == nil
}

// IsServers reports whether this is a configuration of SPIRE Server.
func (f *File) IsServers() bool {
	return f.whole.Plugins != nil && f.whole.Server != nil && f.whole.Agent == nil
}

// Parse does what the function Parse does. If the file does not name the trust domain, Parse refuses no SPIFFE ID
// for its trust domain. If the error is not of the type Problems, a plugin_data_file could not be looked at.
func (f *File) Parse() (*Config, error) { return f.input().parsed() }

// Load does what Loader.Load does. It treats the trust domain and a plugin_data_file as File.Parse does.
func (f *File) Load(ctx context.Context) (*Config, error) { return f.loader.load(ctx, f.input()) }

// input returns the configuration of the server's NodeAttestor "tpm".
func (f *File) input() *input {
	in := &input{data: Data{Text: f.text}, kinds: kinds()}
	switch {
	case f.whole.Plugins == nil:
		return in
	case f.isAgents():
		in.problems.add("agent", "this is SPIRE Agent's configuration: name SPIRE Server's")
		in.unread = true
		return in
	}
	data, err := f.attestor()
	if err != nil {
		in.unread = true
		if _, failed := errors.AsType[*lookError](err); failed {
			in.failed = err
		}
		in.problems.add(pluginsKey, "%v", err)
	}
	in.data, in.composer = data, f.found[composerType]
	if in.trustDomain, err = trustDomainOf(f.whole.Server); err != nil {
		in.problems.add("server: trust_domain", "%v", err)
	}
	return in
}

// attestor returns the plugin_data of the NodeAttestor. It is an error if SPIRE would not load a NodeAttestor "tpm".
func (f *File) attestor() (Data, error) {
	p := f.found[attestorType]
	switch {
	case p.err != nil:
		return Data{}, p.err
	case !p.there:
		return Data{}, fmt.Errorf("there is no %s", called(attestorType))
	case p.off:
		return Data{}, fmt.Errorf("%s has enabled = false, so SPIRE does not load it, and no machine attests by it: "+
			"remove enabled = false", called(attestorType))
	}
	return p.data, nil
}

// AgentData returns the plugin_data of NodeAttestor "tpm" if this is a configuration of SPIRE Agent. Otherwise ok is
// false. The error is as with File.Parse.
func (f *File) AgentData() (data Data, ok bool, err error) {
	if !f.isAgents() {
		return Data{}, false, nil
	}
	data, err = f.attestor()
	return data, true, asProblems(err)
}

// KeyManagerData does what AgentData does, for KeyManager "tpm". If SPIRE Agent has another key manager, ok is false.
func (f *File) KeyManagerData() (data Data, ok bool, err error) {
	if !f.isAgents() {
		return Data{}, false, nil
	}
	p := f.found[keyManagerType]
	return p.data, p.loaded() && p.err == nil, asProblems(p.err)
}

// asProblems returns the error about a plugin as Problems, unless a file could not be looked at.
func asProblems(err error) error {
	if _, failed := errors.AsType[*lookError](err); failed || err == nil {
		return err
	}
	return Problems{{Path: pluginsKey, Message: err.Error()}}
}

// DataFiles returns the files that Open has read, or tried to read, and the keys plugin_data_file that name them.
func (f *File) DataFiles() []Path {
	var all []Path
	for _, kind := range []string{attestorType, composerType, keyManagerType} {
		if p := f.found[kind]; p != nil && p.data.File != "" {
			all = append(all, Path{At: called(kind) + ": plugin_data_file", Path: p.data.File, Regular: true})
		}
	}
	return all
}

// Same reports whether f and g have the same text, and Open found the same in the files that they name.
func (f *File) Same(g *File) bool {
	return f.text == g.text && maps.EqualFunc(f.found, g.found, func(p, q *plugin) bool {
		return p.data == q.data && fmt.Sprint(p.err) == fmt.Sprint(q.err)
	})
}
