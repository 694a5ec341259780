# SPDX-License-Identifier: GPL-2.0
# Sourced, after lib.sh: Debian packages that the machine itself does not install,
# of other suites or, if $debian is set, for another architecture.
# shellcheck shell=bash disable=SC2154

apt=$cache/apt${debian:+-$debian}

# The archive and its keyring are those that the machine's own sources name, so
# that a mirror or a proxy goes on being used. Where apt-get update has not been
# run yet, apt knows the URI, but neither its origin nor more about it.
archive() {
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(REPO_URI) $(SIGNED_BY)' \
		'Created-By: Packages' 'Origin: Debian' 'Label: Debian'
	apt-get update --print-uris | sed -n "s,^'\(.*/debian/*\)dists/.*,\1,p"
}

# apt as the system has it, but for the sources, the state and the architecture.
apt() {
	local cmd=$1
	shift
	"$cmd" -qq -o Dir::Etc::sourcelist="$apt/sources.list" \
		-o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$apt/lists" \
		-o Dir::Cache="$apt/cache" -o Acquire::Languages=none \
		${debian:+-o APT::Architecture="$debian" -o APT::Architectures="$debian"} "$@"
}

# update_lists SUITE...: what there is. One that the mirror lacks does no harm.
update_lists() {
	local uri key suite
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
	read -r uri key <<<"$(archive | head -n 1)"
	[ -n "$uri" ] || { echo "No Debian archive in apt's sources."; return 1; }
	[ -e "$key" ] || key=/usr/share/keyrings/debian-archive-keyring.gpg
	for suite; do
		echo "deb [signed-by=$key] $uri $suite main"
	done >"$apt/sources.list"
	apt apt-get update || :
}
