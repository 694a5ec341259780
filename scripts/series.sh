# SPDX-License-Identifier: GPL-2.0
# Sourced by what turns the series into commits (compose) and commits into the
# series (mail). Where it is used, the current directory is build/linux.
#
# A line of patches/*/series names a patch and the own files that come with it:
# those that stand in this repository, in their last state. What a later patch
# changes in them is taken back to know the state they come with.
# shellcheck shell=bash

linux=$build/linux
series_name=${series_dir#"$top/"}
tmp=''

# One at a time, and nothing left behind. Nothing of the user's configuration
# may show in a patch or a commit.
exec 9>"$build/lock"
flock 9
trap '[ -z "$tmp" ] || rm -rf "$tmp"' EXIT
unset COLUMNS "${!GIT_@}"
git_user() { env -u GIT_CONFIG_GLOBAL -u GIT_CONFIG_NOSYSTEM git "$@"; }
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1

# The lines of a series file, without comments.
series_lines() {
	sed 's/#.*//; /^[[:space:]]*$/d' "$1/$series_name/series"
}

kernel_version() {
	awk '$2 == "=" && !($1 in x) { x[$1] = $3 }
		END { printf "%s.%s", x["VERSION"], x["PATCHLEVEL"]
		if (x["SUBLEVEL"] > 0) printf ".%s", x["SUBLEVEL"]
		print x["EXTRAVERSION"] }'
}

# Where a path has no entry, nothing is printed.
entry() { git ls-files -s -- ":(literal)$1"; }

# What the repository $1 says, as one word. Equal words, equal commits.
series_key() {
	local files
	mapfile -t files < <(series_lines "$1" | awk -v d="$series_name" \
		'{ print d "/" $1; for (i = 2; i <= NF; i++) print $i }')
	(
		cd "$1"
		series_lines .
		[ ${#files[@]} -eq 0 ] || {
			stat -c '%A %n' -- "${files[@]}" | cut -c '1,4,11-'
			sha256sum -- "${files[@]}"
		}
	) | sha256sum | cut -c 1-64
}

# Names the hunks that git apply complained about: $1 its words, $2 the diff.
failed_hunks() {
	sed -n 's/^error: //p' "$1" >&2
	sed -n 's/^error: patch failed: \(.*\):\([0-9]*\)$/\1 \2/p' "$1" |
	while read -r file line; do
		awk -v file="b/$file" -v line="$line" '
			/^diff --git / { on = $4 == file; n = 0; show = 0 }
			/^@@ / {
				n++
				split(substr($2, 2), at, ",")
				show = on && at[1] == line
				if (show)
					print "Hunk " n " of " substr(file, 3) ":"
			}
			show' "$2" >&2
	done
}

# apply DIFF OPTION...: a diff to the index.
apply() {
	local diff=$1
	shift
	grep -q '^diff --git ' "$diff" || return 0
	git apply --cached --whitespace=nowarn "$@" "$diff" 2>"$tmp/err" || {
		failed_hunks "$tmp/err" "$diff"
		return 1
	}
}

# compose REPOSITORY BASE REF: makes the commits and lets REF name the last one.
# Only the paths that the series touches are looked at, and no work tree at all.
# The committer is the author, so that the same series gives the same commits.
compose() {
	local repo=$1 base=$2 ref=$3 version i n=0 p line
	local -a patch=() own=() keep
	local -A from=()
	[ -f "$repo/$series_name/series" ] || die "there is no $series_name/series"
	version="Linux $(git cat-file blob "$base:Makefile" | kernel_version)"
	[ -d "$tmp" ] || tmp=$(mktemp -d "$build/tmp.XXXXXX")
	local -x GIT_INDEX_FILE=$tmp/index
	rm -f "$tmp"/*

	while read -r p line; do
		n=$((n + 1)) patch[n]=$p own[n]=$line
		[ -f "$repo/$series_name/$p" ] || die "$series_name/$p is missing"
		git mailinfo -b "$tmp/$n.msg" "$tmp/$n.diff" \
			<"$repo/$series_name/$p" >"$tmp/$n.info" ||
			die "$series_name/$p is not a mail with a patch"
		sed -n 's,^diff --git a/\([^ ]*\) b/\([^ ]*\)$,\1\n\2,p' \
			"$tmp/$n.diff" | sort -u >"$tmp/$n.paths"
		for p in $line; do
			[ -e "$repo/$p" ] || [ -L "$repo/$p" ] ||
				die "${patch[n]} brings $p, which is not here"
			[ -z "${from[$p]:-}" ] || die "two patches bring $p"
			[ -z "$(git ls-tree "$base" -- "$p")" ] ||
				die "${patch[n]} brings $p, which $version has already"
			from[$p]=$n
		done
	done < <(series_lines "$repo")

	# Backwards: the own files, from their last state to the one they come in.
	[ ${#from[@]} -eq 0 ] ||
		git --git-dir="$(git rev-parse --absolute-git-dir)" \
			--work-tree="$repo" -C "$repo" \
			update-index --add -- "${!from[@]}"
	git ls-files -s >"$tmp/last"
	for ((i = n; i; i--)); do
		for p in ${own[i]}; do
			entry "$p" >"$tmp/entry"
			[ -s "$tmp/entry" ] || die "${patch[i]} brings $p, a later patch too"
			cat "$tmp/entry" >>"$tmp/$i.own"
			git update-index --force-remove -- "$p"
		done
		keep=()
		while read -r p; do
			[ "${from[$p]:-$i}" -ge "$i" ] || keep+=(--include="$p")
		done <"$tmp/$i.paths"
		[ ${#keep[@]} -eq 0 ] ||
			apply "$tmp/$i.diff" -R "${keep[@]}" ||
			die "${patch[i]} does not fit our copy of that file any more:" \
				"change the file in build/linux, in the commit it is for"
	done

	# Forwards.
	rm -f "$GIT_INDEX_FILE"
	cat "$tmp"/*.paths 2>/dev/null | sort -u >"$tmp/paths" || :
	xargs -r -d '\n' git ls-tree -r "$base" -- <"$tmp/paths" |
		git update-index --index-info
	printf '%s\n' "${!from[@]}" >>"$tmp/paths"
	printf 'reset %s\nfrom %s\n' "$ref" "$base" >"$tmp/import"
	for ((i = 1; i <= n; i++)); do
		apply "$tmp/$i.diff" ||
			die "$series_name/${patch[i]} does not apply to $version"
		[ -z "${own[i]}" ] || git update-index --index-info <"$tmp/$i.own"
		emit "$ref" "$tmp/$i" >>"$tmp/import"
	done
	git ls-files -s -- "${!from[@]}" | { [ ${#from[@]} -eq 0 ] || cmp -s - "$tmp/last"; } ||
		die "the patches do not lead to the own files' last state"
	git fast-import --quiet --force --date-format=rfc2822 <"$tmp/import"
}

# One commit for git fast-import: the index against all paths of the series.
emit() {
	local who
	who=$(awk '
		sub(/^Author: /, "") { name = $0 }
		sub(/^Email: /, "") { mail = $0 }
		sub(/^Date: /, "") { date = $0 }
		END { print name " <" mail "> " date }' "$2.info")
	{
		sed -n 's/^Subject: //p' "$2.info"
		echo
		cat "$2.msg"
	} | git stripspace >"$2.log"
	printf 'commit %s\nauthor %s\ncommitter %s\n' "$1" "$who" "$who"
	printf 'data %d\n' "$(stat -c %s "$2.log")"
	cat "$2.log"
	git ls-files -s | awk '
		NR == FNR { if ($0 != "") gone[$0]; next }
		{ delete gone[$4]; m[++n] = "M " $1 " " $2 " " $4 }
		END { for (p in gone) print "D " p; for (i = 1; i <= n; i++) print m[i] }
		' "$tmp/paths" -
}

# mail COMMIT PATH...: the commit as a mail, without what it does to the paths.
# Plumbing: its output is the same on every machine.
mail() {
	local commit=$1
	shift
	git diff-tree --always --pretty=email --stat=72 --summary -p --binary \
		--full-index --no-renames --no-ext-diff --no-textconv "$commit" -- . \
		"${@/#/:(top,exclude,literal)}" |
		sed "1s/^From [0-9a-f]*/From ${commit//?/0}/"
}
