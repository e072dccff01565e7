package config

import "io/fs"

// StatSlots is how many questions to file systems may be open.
const StatSlots = statSlots

// NewLoaderWith returns a Loader that asks stat.
func NewLoaderWith(stat func(string) (fs.FileInfo, error)) *Loader {
	l := NewLoader()
	l.stat = stat
	return l
}

// KindExamples returns the example of each kind of source.
func KindExamples() map[string]string {
	m := map[string]string{}
	for _, k := range kinds() {
		m[k.name] = k.example
	}
	return m
}
