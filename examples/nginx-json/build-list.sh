#!/bin/sh
# build-list.sh FOLDER LIST: writes the JSON list of the machines in FOLDER to LIST, and compressed to
# LIST.gz, where they differ from what is there already. Run it after each change, or every minute: runs
# wait for each other.
#
# FOLDER is as for a hash_dir: a file for each machine, named by its EK hash in lower case or in upper
# case, empty or with a JSON object that gives a name and labels. Other names are left out, with a word if
# they look like a hash.
set -eu
export LC_ALL=C

folder=${1:?usage: build-list.sh FOLDER LIST}
list=${2:?usage: build-list.sh FOLDER LIST}
fail() {
	echo "$1: the list is left unchanged" >&2
	exit 1
}

# From here to the end there is one run at a time, so that no two lists have one serial. The lock ends with
# the process, however that ends.
exec 9<"$(dirname "$list")"
flock -w 60 9 || fail "another run has not finished within a minute"
work=$list.new
rm -rf "$work"
mkdir "$work"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

# The body: an entry a line, with the fields of the file's object behind the hash. An object is taken apart,
# not copied: the file of one machine cannot name the hash of another, nor add an entry of its own.
hash=
while [ "${#hash}" -lt $((64 * 11)) ]; do hash="${hash}[0-9A-Fa-f]"; done
find -L "$folder/" -maxdepth 1 -type f -name "$hash" >"$work/found" ||
	fail "$folder cannot be read completely; is it mounted?"
find -L "$folder/" -maxdepth 1 -type f -name "$hash?*" | sed 's/$/: left out: its name is longer than a hash/' >&2
sort "$work/found" | awk '
	function say(problem) { print path ": " problem | "cat >&2" }
	function stop(problem) {
		say(problem ": the list is left unchanged")
		failed = 1
		exit
	}
	BEGIN {
		text = "\"([^\"\\\\]|\\\\.)*\""
		value = "(" text "|-?[0-9][0-9.eE+-]*|true|false|null|\\[ *(" text " *(, *" text " *)*)?\\])"
		field = "^ *\"[A-Za-z0-9_.-]+\" *: *" value " *"
	}
	# Says what is wrong with the fields of an object, if anything is.
	function wrong(fields) {
		while (match(fields, field)) {
			if (tolower(fields) ~ /^ *"hash"/) return "names a hash: that of a machine is the name of its file"
			fields = substr(fields, RLENGTH + 1)
			if (fields == "") return ""
			if (fields !~ /^,/) break
			fields = substr(fields, 2)
		}
		return "neither empty nor a JSON object of texts, numbers and lists of texts"
	}
	{
		path = $0
		object = ""
		while ((more = (getline line <path)) > 0) object = object line " "
		if (more < 0) stop("cannot be read")
		close(path)
		gsub(/[\t\r]/, " ", object)
		sub(/^ +/, "", object)
		sub(/ +$/, "", object)
		name = substr(path, length(path) - 63)
		hash = tolower(name)
		if (name != hash && name != toupper(name)) {
			say("left out: its name is in upper and lower case")
			next
		}
		if (hash in seen) stop("is there in upper and in lower case")
		seen[hash]
		if (object != "" && object !~ /^\{.*\}$/) stop("neither empty nor a JSON object")
		fields = substr(object, 2, length(object) - 2)
		if (fields ~ /[^ ]/) {
			if ((problem = wrong(fields)) != "") stop(problem)
			printf "%s{\"hash\": \"%s\",%s}\n", comma, hash, fields
		} else printf "%s\"%s\"\n", comma, hash
		comma = ","
	}
	END { exit failed }
' >"$work/body"
[ -s "$work/body" ] || fail "$folder lists no machines; is it mounted?"
printf ']}\n' >>"$work/body"

# first prints the serial of a list that this script has made.
first() {
	sed -n '1s/^{"version": 1, "serial": \([0-9]\{1,18\}\), "keys": \[$/\1/p'
}
# The higher serial of the two files counts. They differ where a run was killed between them.
serial=0
if [ -e "$list" ] || [ -e "$list.gz" ]; then
	: >"$work/before"
	: >"$work/before.gz"
	[ ! -e "$list" ] || cat "$list" >"$work/before"
	[ ! -e "$list.gz" ] || gzip -d -c "$list.gz" >"$work/before.gz" || fail "$list.gz is damaged: move it away"
	tail -n +2 "$work/before" >"$work/body.before"
	! cmp -s "$work/before" "$work/before.gz" || ! cmp -s "$work/body" "$work/body.before" || exit 0
	for file in "$work/before" "$work/before.gz"; do
		[ -s "$file" ] || continue
		has=$(first <"$file")
		: "${has:?$list was not made by build-list.sh, or its serial is too high: move it away, with $list.gz}"
		[ "$has" -le "$serial" ] || serial=$has
	done
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
