#!/bin/sh
# All maintainer scripts of the debs with a plugin, which dpkg tells apart. While such a package is installed, the
# paths of spire-tpm-plugin's package lead to its files, and spire-tpm-plugin's own are PATH.spire-tpm-plugin. At no
# moment a path leads to nothing, whichever of the two packages is installed or removed, in whichever order.
set -e

ours=$DPKG_MAINTSCRIPT_PACKAGE
case $ours in
spire-tpm-attestor-server)
	theirs=spire-server-nodeattestor-tpmdirect
	paths=/usr/libexec/spire/plugins/server-nodeattestor-tpmdirect
	;;
spire-tpm-attestor-agent)
	theirs=spire-agent-nodeattestor-tpmdirect
	paths="/usr/libexec/spire/plugins/agent-nodeattestor-tpmdirect /usr/bin/get-tpm-pubhash"
	;;
esac

divert() { dpkg-divert --quiet --no-rename --package "$1" --divert "$3" --add "$2"; }
undivert() { dpkg-divert --quiet --no-rename --package "$1" --remove "$2"; }
diverter() { dpkg-divert --listpackage "$1"; }

# take makes a path ours: dpkg is about to unpack our file there, over theirs, which gets its other name before.
take() {
	[ "$(diverter "$1")" != "$ours" ] || return 0
	[ ! -e "$1" ] || ln -f "$1" "$1.spire-tpm-plugin"
	divert "$ours" "$1" "$1.spire-tpm-plugin"
}
# give makes a path theirs: dpkg is about to remove our file, which gets another name for that.
give() {
	[ "$(diverter "$1")" = "$ours" ] && [ -e "$1.spire-tpm-plugin" ] || return 0
	ln -f "$1" "$1.removed"
	mv -T "$1.spire-tpm-plugin" "$1"
	undivert "$ours" "$1"
	divert "$theirs" "$1" "$1.removed"
}
# keep undoes give: nothing is removed after all.
keep() {
	[ "$(diverter "$1")" = "$theirs" ] || return 0
	ln -f "$1" "$1.spire-tpm-plugin"
	mv -T "$1.removed" "$1"
	undivert "$theirs" "$1"
	divert "$ours" "$1" "$1.spire-tpm-plugin"
}
# leave ends what is left of diversions. In an installation that has failed, dpkg has put theirs back.
leave() {
	case $(diverter "$1") in
	"$ours")
		undivert "$ours" "$1"
		rm -f "$1.spire-tpm-plugin"
		;;
	"$theirs") undivert "$theirs" "$1" ;;
	esac
}

for path in $paths; do
	case "$DPKG_MAINTSCRIPT_NAME ${1-}" in
	"preinst install" | "preinst upgrade") take "$path" ;;
	"prerm remove") give "$path" ;;
	"postinst abort-remove") keep "$path" ;;
	"postrm remove" | "postrm abort-install" | "postrm disappear") leave "$path" ;;
	esac
done
