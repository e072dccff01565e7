#!/bin/sh
# Prints the folder of a spire-server and a spire-agent: those on the PATH where both are there, else
# the release that spire/go.mod names, built once into a cache. Everything but the folder goes to
# standard error.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
say() { printf '%s\n' "$*" >&2; }

# Prints the folder on the PATH that has both.
on_path() {
	server=$(command -v spire-server) || return 1
	dir=$(dirname "$server")
	[ -x "$dir/spire-agent" ] && printf '%s\n' "$dir"
}

if dir=$(on_path); then
	say "SPIRE $("$dir/spire-server" --version 2>&1 | head -n 1) from the PATH: $dir"
	printf '%s\n' "$dir"
	exit 0
fi

version=$(cd "$here/spire" && go list -m -f '{{.Version}}' github.com/spiffe/spire)
cc=$(go env CC)
command -v "${cc%% *}" >/dev/null 2>&1 || {
	say "SPIRE's server needs cgo and there is no C compiler: install gcc"
	exit 1
}
dir=$("$here/../.ci/build-tools" "$here/spire" "spire/$version" \
	"SPIRE ${version#v} (about 10 minutes on 2 cores)" \
	-buildvcs=false -ldflags "-s -w -X github.com/spiffe/spire/pkg/common/version.gittag=${version#v}")
say "SPIRE ${version#v} from the cache: $dir"
printf '%s\n' "$dir"
