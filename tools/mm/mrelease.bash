# SPDX-License-Identifier: GPL-2.0
# bash completion for mrelease(1). For /usr/share/bash-completion/completions/mrelease
# shellcheck shell=bash

_mrelease() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} name

	COMPREPLY=()
	case $prev in
	-c | --cgroup)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -d -- "${cur:-/sys/fs/cgroup/}") ;;
	-m | --match)
		# Anybody may have chosen them: not for compgen -W, which expands words.
		while IFS= read -r name; do
			[[ $name != "$cur"* ]] || COMPREPLY+=("$(printf %q "$name")")
		done < <(sort -u /proc/[0-9]*/comm 2>/dev/null) ;;
	-p | --pidfd)
		mapfile -t COMPREPLY < <(cd "/proc/$$/fd" && compgen -G "$cur*") ;;
	-j | --jobs | -t | --timeout) ;;
	*)
		case $cur in
		-*)	mapfile -t COMPREPLY < <(compgen -W '--pidfd --match --full --exact
				--cgroup --jobs --dry-run --timeout --json --quiet --help' -- "$cur") ;;
		*)	mapfile -t COMPREPLY < <(compgen -W "$(cd /proc && echo [0-9]*)" -- "$cur") ;;
		esac ;;
	esac
}
complete -F _mrelease mrelease
