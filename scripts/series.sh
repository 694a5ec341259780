# SPDX-License-Identifier: GPL-2.0
# Sourced by what works on build/linux: turns patches into commits (compose) and
# a commit into a patch (mail).
#
# A line of patches/*/series names a patch and the own files that its commit
# brings. An own file is a file that the kernel does not have. It stands in this
# repository under its kernel path, arrives whole in one commit, and no other
# commit changes it; a patch holds only changes to the kernel's files.
#
# A series for another kernel stores only what differs. Its series file names patches
# of its own, and then the series that it goes on with: "from 7.3". Before that,
# "without PATCH" leaves one of that series out. A patch named as one of the series
# after "from" is an overlay: for each file with a "diff --git" line in the overlay, that
# section replaces the section of the inherited patch, and a section without hunks
# removes it. A message in the overlay replaces the message.
#
# A commit whose subject begins with "not mailed: " is no part of the series that
# make series and make apply hand out. Such commits stand last.
# shellcheck shell=bash


# One user at a time, with one temporary directory.
exec 9>"$build/lock"
flock 9
tmp=$build/tmp
rm -rf "$tmp"
mkdir "$tmp"
trap 'rm -rf "$tmp"' EXIT

# The user's configuration must not show in a patch or a commit.
unset COLUMNS "${!GIT_@}"
git_user() { env -u GIT_CONFIG_GLOBAL -u GIT_CONFIG_NOSYSTEM git "$@"; }
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1

kernel_version() {
	awk '$2 == "=" && !($1 in x) { x[$1] = $3 }
		END { printf "%s.%s", x["VERSION"], x["PATCHLEVEL"]
		if (x["SUBLEVEL"] > 0) printf ".%s", x["SUBLEVEL"]
		print x["EXTRAVERSION"] }'
}

# series_lines REPOSITORY SERIES: the lines of its series file, without comments.
series_lines() { sed 's/#.*//; /^[[:space:]]*$/d' "$1/patches/$2/series"; }

# goes_on_with REPOSITORY SERIES: the series that it names with "from", if any.
goes_on_with() { series_lines "$1" "$2" | sed -n 's/^from //p'; }

# series_files REPOSITORY [SERIES]: the files that the series consists of.
series_files() {
	local repo=$1 name=${2:-$series} from
	(cd "$repo" && find "patches/$name" -name series -o -name '*.patch')
	series_lines "$repo" "$name" | awk '!/^(from|without) / { for (i = 2; i <= NF; i++) print $i }'
	from=$(goes_on_with "$repo" "$name")
	[ -z "$from" ] || series_files "$repo" "$from"
}

# lay_over PATCH OTHER: print PATCH with what OTHER says of the same files instead.
lay_over() {
	[ -e "$2" ] || { cat "$1"; return; }
	awk '
	FNR == 1 { file = "" }
	/^diff --git / { file = $0 }
	NR == FNR { other[file] = other[file] $0 "\n"; next }
	FNR == 1 && "" in other { printf "%s", other[""] }
	!(file in other)
	END {
		for (file in other)
			if (file != "" && other[file] ~ /\n./)
				printf "%s", other[file]
	}' "$2" "$1"
}

# expand REPOSITORY SERIES DIRECTORY: write the series there as if it stood alone: all
# patches whole, and a series file.
expand() {
	local repo=$1 name=$2 out=$3 patch files without=''
	[ -f "$repo/patches/$name/series" ] || die "there is no patches/$name/series"
	mkdir -p "$out"
	series_lines "$repo" "$name" >"$out/lines"
	while read -r patch files; do
		if [ "$patch" = without ]; then
			without+=" $files "
		elif [ "$patch" = from ]; then
			expand "$repo" "$files" "$out/from"
			while read -r patch files; do
				[[ $without != *" $patch "* ]] || continue
				lay_over "$out/from/$patch" "$repo/patches/$name/$patch" >"$out/$patch"
				echo "$patch $files"
			done <"$out/from/series"
		else
			cp "$repo/patches/$name/$patch" "$out/"
			echo "$patch $files"
		fi
	done <"$out/lines" >"$out/series"
	for patch in "$repo/patches/$name"/*.patch; do
		[ ! -e "$patch" ] || [ -e "$out/${patch##*/}" ] ||
			die "no line of a series file names ${patch#"$repo/"}"
	done
}

# One word for these files' names, contents and modes. Equal words, equal commits.
series_key() {
	series_files "$1" | sort -u | tar c -C "$1" --mtime=@0 --mode=go= --owner=0 --group=0 \
		--numeric-owner -T - | sha256sum | cut -c 1-64
}

subject() { git log -1 --format='%h ("%s")' "$1"; }

# The last commit that is mailed.
last_mailed() {
	git log --reverse --format='%H %s' base..series | awk '
		BEGIN { last = "base" }
		/^[^ ]* not mailed: / { behind = 1 }
		!behind { last = $1 }
		END { print last }'
}

# commit_mail PARENT: commit the index with author, date and message of the mail
# that git mailinfo has split. The committer is the author, so that the same
# series gives the same commits.
commit_mail() {
	local field value
	while IFS=: read -r field value; do
		case $field in
		Author)	local -x GIT_AUTHOR_NAME=${value# } GIT_COMMITTER_NAME=${value# } ;;
		Email)	local -x GIT_AUTHOR_EMAIL=${value# } GIT_COMMITTER_EMAIL=${value# } ;;
		Date)	local -x GIT_AUTHOR_DATE=${value# } GIT_COMMITTER_DATE=${value# } ;;
		esac
	done <"$tmp/info"
	{ sed -n 's/^Subject: //p' "$tmp/info"; echo; cat "$tmp/message"; } | git stripspace |
		git commit-tree -p "$1" "$(git write-tree)"
}

# compose REPOSITORY BASE REF: make the commits of the series of REPOSITORY on top
# of BASE, and let REF name the last one. No work tree is needed.
compose() {
	local repo=$1 base=$2 ref=$3 commit=$2 version git_dir patch files file not_mailed=''
	local -x GIT_INDEX_FILE=$tmp/index
	rm -rf "$tmp/series"
	expand "$repo" "$series" "$tmp/series"
	version="Linux $(git cat-file blob "$base:Makefile" | kernel_version)"
	git_dir=$(git rev-parse --absolute-git-dir)
	git read-tree "$base"
	while read -r patch files; do
		git mailinfo -b "$tmp/message" "$tmp/diff" <"$tmp/series/$patch" >"$tmp/info" ||
			die "patches/$series/$patch is not there, or is not a mail"
		if grep -q '^Subject: not mailed: ' "$tmp/info"; then
			not_mailed=$patch
		elif [ -n "$not_mailed" ]; then
			die "$patch is mailed and stands behind $not_mailed, which is not"
		fi
		while read -r file; do
			git cat-file -e "$base:$file" 2>/dev/null ||
				die "$patch changes $file, which $version does not have." \
					"An own file stands whole under its kernel path, and no patch changes it"
		done < <(changed_files <"$tmp/diff")
		! grep -q '^diff --git ' "$tmp/diff" ||
			git apply --cached --whitespace=nowarn "$tmp/diff" ||
			die "patches/$series/$patch does not apply to $version"
		for file in $files; do
			[ -e "$repo/$file" ] || [ -L "$repo/$file" ] ||
				die "$patch brings $file, which is not here"
			[ -z "$(git ls-files -- ":(literal)$file")" ] ||
				die "$patch brings $file, which $version or another patch has already"
			git --git-dir="$git_dir" --work-tree="$repo" -C "$repo" \
				update-index --add -- "$file"
		done
		commit=$(commit_mail "$commit")
	done <"$tmp/series/series"
	git update-ref "$ref" "$commit"
}

# Plumbing, so that the output is the same on every machine.
plain_diff() {
	git diff-tree -p --binary --full-index --no-renames --no-ext-diff --no-textconv "$@"
}

# mail COMMIT FILE...: print the commit as a mail, without what it does to the files.
mail() {
	local commit=$1
	shift
	plain_diff --always --pretty=email --stat=72 --summary "$commit" -- . \
		"${@/#/:(top,exclude,literal)}" |
		sed "1s/^From [0-9a-f]*/From ${commit//?/0}/"
}

# Print the names of the files that the diffs in the input change.
changed_files() { sed -n 's,^diff --git a/.* b/,,p'; }
