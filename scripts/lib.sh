# SPDX-License-Identifier: GPL-2.0
# Sourced by every script here: where things are, and how a step is reported.
# shellcheck shell=bash disable=SC2034

set -eu -o pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$top/build
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mrelease
series_dir=$top/patches/${SERIES:-7.2}
export LC_ALL=C
# What stands on its command line, make has put into the environment, too. From
# here on it is ours to change.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES

mkdir -p "$build/log" "$cache"

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# What a step runs is a process group of its own, or else bash would have it
# ignore the interrupt, and would leave it running.
step_pid=''
trap '[ -z "$step_pid" ] || kill -- "-$step_pid"; exit 130' INT TERM HUP

# step TEXT COMMAND...: runs the command with its output in a log, and prints
# one line with the time it took. The hint for a failure is in $hint, if set.
# Progress goes to standard error, so that standard output is left to results.
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

# need COMMAND[:PACKAGE] or /path/to/file:PACKAGE ...: installs what is missing.
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
