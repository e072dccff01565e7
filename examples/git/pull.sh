#!/bin/sh
# Publishes what a branch of a git repository holds as <folder>/current, whole:
#
#     pull.sh <repository> <branch> <folder> [seconds]
#
# again and again with a pause between, or once where no seconds are given. A link is swapped, so
# that nobody sees a checkout that is half done.
set -eu

if [ $# -lt 3 ]; then
	echo "usage: $0 <repository> <branch> <folder> [seconds]" >&2
	exit 2
fi
repository=$1 branch=$2 folder=$3 pause=${4-}

publish() {
	git -C "$folder/clone.git" fetch -q --no-tags origin "+refs/heads/$branch:refs/heads/$branch" || return
	commit=$(git -C "$folder/clone.git" rev-parse "refs/heads/$branch") || return
	[ "$(readlink "$folder/current" || true)" != "$commit" ] || return 0
	# Only commits that somebody of yours has signed: git -C "$folder/clone.git" verify-commit "$commit" || return
	rm -rf "$folder/new" "$folder/link" && mkdir "$folder/new" || return
	git -C "$folder/clone.git" archive -o "$folder/new.tar" "$commit" || return
	tar -x -f "$folder/new.tar" -C "$folder/new" || return
	rm -rf "${folder:?}/$commit" && mv "$folder/new" "$folder/$commit" || return
	before=$(readlink "$folder/current" || true)
	ln -s "$commit" "$folder/link" && mv -T "$folder/link" "$folder/current" || return
	[ -z "$before" ] || rm -rf "${folder:?}/$before"
}

if [ ! -d "$folder/clone.git" ]; then
	mkdir -p "$folder"
	git init -q --bare "$folder/clone.git"
	git -C "$folder/clone.git" remote add origin "$repository"
fi
if [ -z "$pause" ]; then
	publish
	exit
fi
while :; do
	publish || echo "$0: keeping what was published before" >&2
	sleep "$pause"
done
