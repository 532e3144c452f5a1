# rayqd completion for bash: eval "$(rayqd completion bash)"

_rayqd_value() { # FLAG COMMAND: what may stand after the flag; returns 1 where nothing may
    case "$2 $1" in
%VALUES%
        *) return 1 ;;
    esac
}

_rayqd_word() { # COMMAND: what it takes without a flag
    case $1 in
%WORDS%
    esac
}

_rayqd_switches() { # COMMAND: the flags that it alone has
    case $1 in
%SWITCHES%
    esac
}

_rayqd_settings() { # COMMAND
    case $1 in
        %WITHOUT_SETTINGS%) ;;
        *) echo "%SETTINGS%" ;;
    esac
}

_rayqd_matching() { # WORD CANDIDATE...: those that begin with WORD, whether it is written with - or with _
    local word=$1 candidate
    shift
    for candidate in "$@"; do
        [[ ${candidate//-/_} == "${word//-/_}"* ]] && COMPREPLY+=("$candidate")
    done
}

_rayqd_paths() { # WORD PREFIX COMPGEN_ARGUMENTS...
    local word=$1 prefix=$2 path
    shift 2
    while IFS= read -r path; do
        [[ $prefix == @ && -d $path ]] && path+=/
        COMPREPLY+=("$prefix$path")
    done < <(compgen "$@" -- "$word")
    [[ $prefix == @ ]] || compopt -o filenames 2>/dev/null # bash adds the slash itself, and quotes
}

_rayqd_answer() { # WORD PREFIX WHAT...: WHAT is words, or FILES, or DIRECTORIES
    local word=$1 prefix=$2
    shift 2
    case $1 in
        FILES) _rayqd_paths "$word" "$prefix" -f ;;
        DIRECTORIES) _rayqd_paths "$word" "$prefix" -d ;;
        *) _rayqd_matching "$prefix$word" "${@/#/$prefix}" ;;
    esac
}

_rayqd() {
    local line=${COMP_LINE:0:COMP_POINT} words word previous command what break kept kept_most=""
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[-1]} previous=${words[-2]} command=${words[1]}
    COMPREPLY=()
    if ((${#words[@]} == 2)); then
        _rayqd_matching "$word" %NAMES% --help --version
    elif [[ $word == @* ]]; then
        _rayqd_paths "${word#@}" @ -d
        _rayqd_paths "${word#@}" @ -f -X '!*.toml'
    elif [[ $word == --*=* ]] && what=$(_rayqd_value "${word%%=*}" "$command"); then
        _rayqd_answer "${word#*=}" "${word%%=*}=" $what
    elif [[ $word == -* ]]; then
        _rayqd_matching "$word" $(_rayqd_switches "$command") $(_rayqd_settings "$command")
    elif [[ $previous == @ ]]; then
        _rayqd_paths "$word" "" -d
        _rayqd_paths "$word" "" -f -X '!*.toml'
    elif what=$(_rayqd_value "$previous" "$command"); then
        _rayqd_answer "$word" "" $what
    else
        what=$(_rayqd_word "$command")
        if [[ $what ]]; then
            _rayqd_answer "$word" "" $what
        elif [[ ! $word && $(_rayqd_settings "$command") ]]; then
            _rayqd_paths "" @ -G '*.toml'
            _rayqd_paths "" @ -G 'configs/*.toml'
        fi
    fi
    for break in = :; do
        kept=${word%"${word##*"$break"}"}
        [[ $COMP_WORDBREAKS == *"$break"* && ${#kept} -gt ${#kept_most} ]] && kept_most=$kept
    done
    COMPREPLY=("${COMPREPLY[@]#"$kept_most"}")
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == */ ]] && compopt -o nospace 2>/dev/null
    return 0
}

complete -F _rayqd rayqd
