#!/bin/sh
# build-list.sh FOLDER LIST: writes the JSON list of the machines in FOLDER to LIST, and compressed to
# LIST.gz, where they differ from what LIST says already. Run it after each change, or every minute.
#
# FOLDER is as for a hash_dir: a file for each machine, named by its EK hash in lower case, empty or
# with a JSON object that gives a name and labels. Other names are left out.
set -eu
export LC_ALL=C

folder=${1:?usage: build-list.sh FOLDER LIST}
list=${2:?usage: build-list.sh FOLDER LIST}
work=$(mktemp -d "$list.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

# The body: an entry a line, with the fields of the file's object behind the hash.
comma=
for file in "$folder"/*; do
	hash=${file##*/}
	case $hash in *[!0-9a-f]*) continue ;; esac
	if [ "${#hash}" -ne 64 ] || [ ! -f "$file" ]; then continue; fi
	object=$(tr '\t\r\n' '   ' <"$file" | sed 's/^ *//; s/ *$//')
	case $object in
	'') fields= ;;
	'{'*'}')
		fields=${object#?}
		fields=${fields%?}
		;;
	*)
		echo "$file: neither empty nor a JSON object: the list stays as it is" >&2
		exit 1
		;;
	esac
	case $fields in
	*[!\ ]*) printf '%s{"hash": "%s",%s}\n' "$comma" "$hash" "$fields" ;;
	*) printf '%s"%s"\n' "$comma" "$hash" ;;
	esac
	comma=,
done >"$work/body"
if [ ! -s "$work/body" ]; then
	echo "$folder has no machine, as if it were not mounted: the list stays as it is" >&2
	exit 1
fi
printf ']}\n' >>"$work/body"

serial=0
if [ -e "$list" ]; then
	tail -n +2 "$list" >"$work/before"
	! cmp -s "$work/body" "$work/before" || exit 0
	serial=$(sed -n '1s/^{"version": 1, "serial": \([0-9][0-9]*\), "keys": \[$/\1/p' "$list")
	: "${serial:?$list was not made by build-list.sh: move it away}"
fi
{
	printf '{"version": 1, "serial": %d, "keys": [\n' "$((serial + 1))"
	cat "$work/body"
} >"$work/list"
gzip -9 -n -c "$work/list" >"$work/list.gz"
chmod 644 "$work/list" "$work/list.gz"
# Each is replaced whole. A server that asks in between has the new one already, or the old one still.
mv "$work/list.gz" "$list.gz"
mv "$work/list" "$list"
