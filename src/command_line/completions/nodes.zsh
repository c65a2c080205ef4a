# Completes the names of nodes, which the definition of the arguments does not contain.
_uds_dist_nodes() {
    local -a dir nodes
    [[ -z ${opt_args[--dir]} ]] || dir=(--dir ${(Q)opt_args[--dir]/#\~/$HOME})
    nodes=(${(f)"$(command uds_dist names -q $dir 2>/dev/null)"})
    compadd -a nodes
}

