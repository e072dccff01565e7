#!/bin/sh
# After an installation or an upgrade, of deb and rpm: what systemd has to know. No unit is enabled or
# started; the new program takes over only where tpm-attestor-evict runs already.
set -e
if command -v systemd-sysusers >/dev/null 2>&1; then
	systemd-sysusers tpm-list.conf || echo "spire-tpm-attestor: could not make the user tpm-list, which tpm-list@.service needs" >&2
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || :
	systemctl try-restart tpm-attestor-evict.service || :
fi
