
# Names of pods, containers, sandboxes and volumes: the program itself tells them. Anything else is
# completed by the function above, @OTHERS@.
_ecr-runtime_names() {
    local names
    if names=$("$1" __complete "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null); then
        compopt +o default +o bashdefault 2>/dev/null
        COMPREPLY=()
        if [[ -n $names ]]; then
            mapfile -t COMPREPLY <<<"$names"
        fi
    else
        @OTHERS@ "$@"
    fi
}
complete -F _ecr-runtime_names -o bashdefault -o default ecr-runtime
