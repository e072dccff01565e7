#!/bin/sh
# install.sh demo|lint|test: installs what the demo, what compiles tests, or the tests need beside Go, git
# and make: by apt where it may, else it prints what to install and ends with exit code 1.
set -eu

want=${1:?usage: install.sh demo|lint|test}
packages=
need() { packages="$packages $1"; }
have() { command -v "$1" >/dev/null 2>&1; }
includes() { printf '#include <%s>\n' "$1" | "$cc" -E - >/dev/null 2>&1; }

cc=$(go env CC)
cc=${cc%% *}

have "$cc" || need gcc
includes stdlib.h || need libc6-dev
if [ "$want" != demo ]; then
	includes openssl/evp.h || need libssl-dev
fi
if [ "$want" != lint ]; then
	have swtpm || need swtpm
	{ have swtpm_setup && have swtpm_localca; } || need swtpm-tools
fi
if [ "$want" = test ]; then
	have tpm2_getcap || need tpm2-tools
	{ have nginx || [ -x /usr/sbin/nginx ]; } || need nginx-light
	{ have fusermount3 || have fusermount; } || need fuse3
	{ have postgres || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; } || need postgresql
	# These two are MariaDB without a service.
	{ have mariadbd || [ -x /usr/sbin/mariadbd ]; } || need mariadb-server-core
	have mariadb || need mariadb-client-core
fi
[ -n "$packages" ] || exit 0

say() { printf '%s\n' "$*" >&2; }
advise() {
	say "$1"
	say "Install them and try again:"
	say "  sudo apt-get update && sudo apt-get install$packages"
	exit 1
}
have apt-get || advise "These packages (by their names in Debian) are missing and there is no apt-get:$packages"
sudo=
if [ "$(id -u)" -ne 0 ]; then
	{ have sudo && sudo -n true 2>/dev/null; } ||
		advise "These packages are missing, and only root may install them:$packages"
	sudo="sudo -n"
fi

# The tests start what they need by themselves: no service that comes with these packages is to run, now
# or after the next boot. What was there before is left as it is.
services=
for s in nginx postgresql; do
	[ -e "/lib/systemd/system/$s.service" ] || [ -e "/etc/init.d/$s" ] || services="$services $s"
done
# The maintainer scripts ask this file before they start a service (invoke-rc.d(8)). Should it be left
# behind, by a kill -9, it forbids nothing any more.
policy=/usr/sbin/policy-rc.d
ours=
forbid() {
	if [ -z "$services" ] || [ -e "$policy" ] || [ -L "$policy" ]; then return; fi
	ours=yes
	$sudo sh -c "cat >$policy && chmod 755 $policy" <<-END
		#!/bin/sh
		# Made by e2e/install.sh of spire-tpm-attestor for as long as its process runs.
		kill -0 $$ 2>/dev/null || exit 0
		for s in$services; do
			case " \$*" in *" \$s"*) exit 101 ;; esac
		done
	END
}
# disable keeps the services of this run from the next boot; where something has started them, they stop.
disable() {
	for s in $services; do
		if [ -d /run/systemd/system ] && [ -e "/lib/systemd/system/$s.service" ]; then
			$sudo systemctl disable --now "$s.service"
		elif [ -e "/etc/init.d/$s" ]; then
			$sudo "/etc/init.d/$s" stop
			$sudo update-rc.d "$s" disable
		fi >>"$log" 2>&1 </dev/null || say "could not disable the service $s: make sure that it does not run"
	done
}

log=$(mktemp)
ticker=
finish() {
	[ -z "$ticker" ] || kill "$ticker" 2>/dev/null || :
	[ -z "$ours" ] || $sudo rm -f "$policy"
	disable
	rm -f "$log"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# progress says every ten seconds what apt is at.
progress() {
	ticks=0
	while sleep 1; do
		ticks=$((ticks + 1))
		[ $((ticks % 10)) -ne 0 ] || say "  ${ticks}s: $(tail -n 1 "$log" | cut -c 1-80)"
	done
}
# apt runs apt-get. While another program (unattended upgrades, on a machine that is new) holds one of the
# locks on packages, lists or downloads, it waits, and says so.
patience=${APT_PATIENCE:-900}
apt() {
	waited=0
	while :; do
		at=$(wc -c <"$log")
		if $sudo env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get "$@" >>"$log" 2>&1 </dev/null; then
			return 0
		fi
		held=$(tail -c "+$((at + 1))" "$log" | grep -m 1 'Could not get lock') || return 1
		[ "$waited" -lt "$patience" ] || return 1
		[ $((waited % 60)) -ne 0 ] || say "waiting for another program that installs packages: ${held#E: }"
		sleep 5
		waited=$((waited + 5))
	done
}
install() {
	# shellcheck disable=SC2086 # a list of words
	apt install -y --no-install-recommends $packages
}
say "installing$packages"
progress &
ticker=$!
forbid
if ! install; then
	# An index of packages that is old, or not there, is the usual reason.
	apt update || :
	install || {
		tail -n 20 "$log" >&2
		advise "apt-get could not install these packages, see above:$packages"
	}
fi
