// Package buildinfo finds the version of a command.
package buildinfo

import (
	"runtime/debug"
	"time"
)

// Version returns the version that the linker has stamped on a command, or else the version that Go has recorded.
func Version(stamped string) string {
	if stamped != "" {
		return stamped
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// Time returns when the source of the command was committed, as Go has recorded it, or the zero time if that is not
// known.
func Time() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			t, _ := time.Parse(time.RFC3339, s.Value) // the zero time if it is not one
			return t
		}
	}
	return time.Time{}
}
