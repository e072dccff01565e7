// Package buildinfo knows the version of a command.
package buildinfo

import "runtime/debug"

// Version returns the version that the linker has stamped a command with, or if there is
// none the one that Go knows.
func Version(stamped string) string {
	if stamped != "" {
		return stamped
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
