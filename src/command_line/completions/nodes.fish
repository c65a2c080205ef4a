
# Completes the names of nodes, which the definition of the arguments does not contain.
function __fish_uds_dist_nodes
    set -l option
    set -l dir
    set -l positional
    set -l words (commandline -opc)
    for word in $words[2..]
        if set -q option[1]
            test $option = --dir; and set dir --dir (string replace -r '^~' -- $HOME $word)
            set option
            continue
        end
        switch $word
            case @OPTIONS@
                set option $word
            case '--dir=*'
                set dir $word
            case '-*'
            case '*'
                set -a positional $word
        end
    end
    # Only the command has been typed, so the node comes next.
    test (count $positional) = 1; and command uds_dist names -q $dir 2>/dev/null
end
complete -c uds_dist -n "__fish_uds_dist_using_subcommand @COMMANDS@" -f -a "(__fish_uds_dist_nodes)"
