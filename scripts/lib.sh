# SPDX-License-Identifier: GPL-2.0
# Sourced by every script: sets where things are, and has step, need and die.
# shellcheck shell=bash disable=SC2034

set -eu -o pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$top/build
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mrelease
# use_series NAME: a directory of patches/, for this script and what it calls. What is
# built for another one than the reference has its name behind a dash.
reference=7.3
use_series() {
	export SERIES=$1
	series=$1 series_dir=$top/patches/$1 suffix=
	[ "$1" = "$reference" ] || suffix=-$1
	linux=$build/linux$suffix
	linux_name=${linux#"$top/"}
}
use_series "${SERIES:-$reference}"
all_series() { printf '%s\n' "$top"/patches/*/series | sed 's,/series$,,; s,.*/,,' | sort -V; }
export LC_ALL=C
# make exports what stands on its command line. A make that a script starts must
# not take that for its own command line.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES

mkdir -p "$build/log" "$cache"

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# A step runs in a process group of its own: otherwise bash makes it ignore SIGINT,
# and it goes on after an interrupt.
step_pid=''
trap '[ -z "$step_pid" ] || kill -- "-$step_pid"; exit 130' INT TERM HUP

# step TEXT COMMAND...: run the command with its output in a log under build/log, and
# print one line with the time it took. On failure print the end of the log, and
# $hint if set, and exit. All goes to standard error; standard output has results.
step() {
	local text=$1 start=$SECONDS log rc=0
	shift
	log=$build/log/$(printf '%s' "$text" | tr -cs 'A-Za-z0-9._-' '-').log
	if [ -t 2 ]; then
		printf '%-58s' "$text" >&2
	fi
	set -m
	"$@" >"$log" 2>&1 </dev/null &
	step_pid=$!
	set +m
	while [ -t 2 ] && kill -0 $step_pid 2>/dev/null; do
		printf '\r%-58s%4ds' "$text" $((SECONDS - start)) >&2
		sleep 1
	done
	wait $step_pid || rc=$?
	step_pid=''
	if [ -t 2 ]; then
		printf '\r' >&2
	fi
	if [ $rc -ne 0 ]; then
		printf '%-58s%4ds  FAILED (%d)\n' "$text" $((SECONDS - start)) $rc >&2
		tail -n 30 "$log" >&2
		printf 'The whole log: %s\n' "${log#"$top/"}" >&2
		[ -z "${hint:-}" ] || printf '%s\n' "$hint" >&2
		exit $rc
	fi
	printf '%-58s%4ds\n' "$text" $((SECONDS - start)) >&2
}

# need COMMAND[:PACKAGE] or /path/to/file:PACKAGE ...: install what is missing, as
# root with apt; otherwise name it and exit.
need() {
	local want name pkg missing=''
	for want; do
		name=${want%%:*} pkg=${want#*:}
		case $name in
		/*)	compgen -G "$name" >/dev/null || missing="$missing $pkg" ;;
		*)	command -v "$name" >/dev/null || missing="$missing $pkg" ;;
		esac
	done
	[ -n "$missing" ] || return 0
	command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] ||
		die "please install:$missing"
	hint="Install by hand:$missing"
	# shellcheck disable=SC2086
	step "installing$missing" install_packages $missing
	hint=''
}

install_packages() {
	# A fresh machine has no package lists yet, an old one may have stale ones.
	apt-get install -y --no-install-recommends --no-remove "$@" || {
		apt-get update
		apt-get install -y --no-install-recommends --no-remove "$@"
	}
}
