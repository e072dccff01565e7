#!/bin/sh
# Before the package is removed, but not before an upgrade: rpm passes how many versions will be left, dpkg
# a word.
set -e
case "${1-}" in
0 | remove)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now tpm-attestor-evict.service || :
		systemctl stop 'tpm-list@*.timer' 'tpm-list@*.service' || :
	fi
	;;
esac
