# SPDX-License-Identifier: GPL-2.0
# Sourced after lib.sh: apt for packages that are not installed on this machine,
# of other suites or, if $debian is set, for that architecture.
# shellcheck shell=bash disable=SC2154

apt=$cache/apt${debian:+-$debian}

# archive LABEL: print the URI of that archive, Debian or Debian-Security, and its
# keyring, as the machine's own sources name them, so that its mirror or proxy is used.
# Before the first apt-get update apt knows nothing but the URI.
archive() {
	local path=/debian
	[ "$1" = Debian ] || path=/debian-security
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(REPO_URI) $(SIGNED_BY)' \
		'Created-By: Packages' 'Origin: Debian' "Label: $1"
	apt-get update --print-uris | sed -n "s,^'\(.*$path/*\)dists/.*,\1,p"
}

# apt COMMAND...: the system's apt with other sources, state and architecture.
apt() {
	local cmd=$1
	shift
	"$cmd" -qq -o Dir::Etc::sourcelist="$apt/sources.list" \
		-o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$apt/lists" \
		-o Dir::Cache="$apt/cache" -o Acquire::Languages=none \
		${debian:+-o APT::Architecture="$debian" -o APT::Architectures="$debian"} "$@"
}

# update_lists SUITE...: get their package lists. A suite that the mirror does not
# have does no harm. Since an alias and a code name can be different indices, what
# "stable" stands for is asked for by that name, too, and its security archive.
update_lists() {
	local uri key suite name
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
	read -r uri key <<<"$(archive Debian | head -n 1)"
	[ -n "$uri" ] || { echo "No Debian archive in apt's sources."; return 1; }
	[ -e "$key" ] || key=/usr/share/keyrings/debian-archive-keyring.gpg
	for suite; do
		printf "deb%s [signed-by=$key] $uri $suite main\n" '' -src
	done >"$apt/sources.list"
	apt apt-get update || :
	name=$(sed -n 's/^Codename: //p' "$apt/lists"/*_dists_stable_InRelease | head -n 1)
	[ -n "$name" ] || return 0
	for suite in "$name" "$name-backports"; do
		printf "deb%s [signed-by=$key] $uri $suite main\n" '' -src
	done >>"$apt/sources.list"
	read -r uri key <<<"$(archive Debian-Security | head -n 1)"
	[ -e "$key" ] || key=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -z "$uri" ] ||
		echo "deb [signed-by=$key] $uri $name-security main" >>"$apt/sources.list"
	apt apt-get update || :
}
