#!/bin/sh
# install.sh demo|test: installs what the demo, or the tests, need beside Go, git and make: by apt where
# it may, else it prints what to install and ends with exit code 1.
set -eu

want=${1:?usage: install.sh demo|test}
packages=
need() { packages="$packages $1"; }
have() { command -v "$1" >/dev/null 2>&1; }
includes() { printf '#include <%s>\n' "$1" | "$cc" -E - >/dev/null 2>&1; }

cc=$(go env CC)
cc=${cc%% *}

have "$cc" || need gcc
includes stdlib.h || need libc6-dev
have swtpm || need swtpm
{ have swtpm_setup && have swtpm_localca; } || need swtpm-tools
if [ "$want" = test ]; then
	have tpm2_getcap || need tpm2-tools
	includes openssl/evp.h || need libssl-dev
	{ have nginx || [ -x /usr/sbin/nginx ]; } || need nginx-light
	{ have fusermount3 || have fusermount; } || need fuse3
	{ have postgres || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; } || need postgresql
	{ have mariadbd || [ -x /usr/sbin/mariadbd ]; } || need mariadb-server
fi
[ -n "$packages" ] || exit 0

advise() {
	printf '%s\n' "$1" "Install them and try again:" "  sudo apt-get update && sudo apt-get install$packages" >&2
	exit 1
}
have apt-get || advise "These packages (by their names in Debian) are missing and there is no apt-get:$packages"
sudo=
if [ "$(id -u)" -ne 0 ]; then
	{ have sudo && sudo -n true 2>/dev/null; } ||
		advise "These packages are missing, and only root may install them:$packages"
	sudo="sudo -n"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

install() {
	# shellcheck disable=SC2086 # both are lists of words
	$sudo env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends $packages >>"$log" 2>&1 </dev/null
}
printf 'installing%s\n' "$packages" >&2
if ! install; then
	# An index of packages that is old, or not there, is the usual reason.
	$sudo apt-get update >>"$log" 2>&1 </dev/null || :
	install || {
		tail -n 20 "$log" >&2
		advise "apt-get could not install these packages, see above:$packages"
	}
fi
