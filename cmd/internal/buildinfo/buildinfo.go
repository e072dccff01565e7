// Package buildinfo finds the version of a command.
package buildinfo

import "runtime/debug"

// Version returns the version that the linker has stamped on a command. If there is none, it
// returns the version that Go has recorded.
func Version(stamped string) string {
	if stamped != "" {
		return stamped
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
