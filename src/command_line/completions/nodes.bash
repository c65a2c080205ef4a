
# Completes the names of nodes, which the definition of the arguments does not contain.
_uds_dist_nodes() {
    _uds_dist "$@"
    local index word option='' command='' node=''
    local -a dir=()
    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if [[ -n $option ]]; then
            [[ $word != = ]] || continue
            [[ $option != --dir ]] || dir=(--dir "${word/#\~/$HOME}")
            option=''
            continue
        fi
        case $word in
            @OPTIONS@) option=$word ;;
            -*) ;;
            *) if [[ -z $command ]]; then command=$word; else node=$word; fi ;;
        esac
    done
    case $option in
        --allow-uid) mapfile -t COMPREPLY < <(compgen -u -- "$2") ;;
        --allow-gid) mapfile -t COMPREPLY < <(compgen -g -- "$2") ;;
        --cookie | --timeout | --wait) COMPREPLY=() ;;
    esac
    if [[ -n $option || -n $node || $2 == -* || " @COMMANDS@ " != *" $command "* ]]; then return; fi
    COMPREPLY=()
    # compgen would expand special characters in a name.
    while IFS= read -r word; do
        [[ $word != "$2"* ]] || COMPREPLY+=("$(printf %q "$word")")
    done < <(command "${1/#\~/$HOME}" names -q "${dir[@]}" 2>/dev/null)
}

complete -F _uds_dist_nodes uds_dist
