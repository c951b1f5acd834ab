# bash completion for penstockd

_penstockd()
{
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
	local file=/etc/penstock/penstock.conf i

	for ((i = 1; i < COMP_CWORD - 1; i++)); do
		case ${COMP_WORDS[i]} in
		-c | --config) file=${COMP_WORDS[i+1]} ;;
		esac
	done
	case $previous in
	-c | --config | --diff)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		;;
	--test-connection)
		mapfile -t COMPREPLY < <(compgen -W "$(sed -n 's/^[[:space:]]*tunnel[[:space:]]*"\([^"]*\)".*/\1/p' \
			"$file" 2>/dev/null)" -- "$current")
		;;
	*)
		mapfile -t COMPREPLY < <(compgen -W "-c --config --check --diff --test-connection --keywords \
			--version --help" -- "$current")
		;;
	esac
}
complete -F _penstockd penstockd
