# bash completion for penstockctl

_penstockctl() {
	local words=${COMP_WORDS[*]:1:COMP_CWORD-1} word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
	local commands="status tunnels targets connections top show why ends limits limit charge credit reset kill drain undrain diff reload log-level"
	local options="--socket --json --tunnel --source --state --sort --limit --every --rounds --direction --version --help"
	local socket=() i choice

	for ((i = 1; i < COMP_CWORD; i++)); do
		[[ ${COMP_WORDS[i]} == --socket || ${COMP_WORDS[i]} == -s ]] && socket=(--socket "${COMP_WORDS[i + 1]}")
	done
	case $before in
	--socket | -s)
		COMPREPLY=($(compgen -f -- "$word"))
		return
		;;
	--sort) choice="id rate bytes age idle wait" ;;
	--state) choice="choosing opening dialling open half_open flushing" ;;
	log-level) choice="error warning notice info debug" ;;
	drain | undrain | --tunnel)
		choice=$(penstockctl "${socket[@]}" --json tunnels 2>/dev/null | sed -n 's/^ *"name": "\(.*\)".*/\1/p')
		;;
	limits | limit | charge | credit | reset)
		choice=$(penstockctl "${socket[@]}" --json limits 2>/dev/null | sed -n 's/^ *"name": "\(.*\)".*/\1/p' | sort -u)
		;;
	--direction) choice="up down" ;;
	show | why | kill)
		choice=$(penstockctl "${socket[@]}" --json connections 2>/dev/null | sed -n 's/^ *"id": \([0-9]*\).*/\1/p')
		;;
	*)
		choice=$options
		for i in $commands; do
			[[ " $words " == *" $i "* ]] && commands=
		done
		[[ $word == -* ]] || choice=$commands
		;;
	esac
	COMPREPLY=($(compgen -W "$choice" -- "$word"))
}
complete -F _penstockctl penstockctl
