# SPDX-License-Identifier: GPL-2.0
# bash completion for mrelease(1). For /usr/share/bash-completion/completions/mrelease
# shellcheck shell=bash

_mrelease() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} name

	# bash makes --option=value three words.
	if [ "$cur" = = ]; then
		cur=''
	elif [ "$prev" = = ]; then
		prev=${COMP_WORDS[COMP_CWORD - 2]}
	fi
	COMPREPLY=()
	case $prev in
	-c | --cgroup)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -d -- "${cur:-/sys/fs/cgroup/}") ;;
	-m | --match)
		# Any user may choose a name: not for compgen -W, which expands words.
		while IFS= read -r name; do
			[[ $name != "$cur"* ]] || COMPREPLY+=("$(printf %q "$name")")
		done < <(sort -u /proc/[0-9]*/comm 2>/dev/null) ;;
	-p | --pidfd)
		mapfile -t COMPREPLY < <(cd "/proc/$$/fd" && compgen -G "$cur*") ;;
	-u | --euid)
		mapfile -t COMPREPLY < <(compgen -u -- "$cur") ;;
	-j | --jobs | -t | --timeout) ;;
	*)
		case $cur in
		-*)	mapfile -t COMPREPLY < <(compgen -W '--pidfd --match --full --exact --euid --parent
				--cgroup --jobs --dry-run --timeout --json --quiet --verbose --version
				--help' -- "$cur") ;;
		*)	mapfile -t COMPREPLY < <(compgen -W "$(cd /proc && echo [0-9]*)" -- "$cur") ;;
		esac ;;
	esac
}
complete -F _mrelease mrelease
