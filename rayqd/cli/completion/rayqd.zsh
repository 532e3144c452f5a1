#compdef rayqd
# rayqd completion for zsh: eval "$(rayqd completion zsh)", after compinit

_rayqd_value() { # FLAG COMMAND: completes what may stand after the flag; returns 2 where nothing may
    case "$2 $1" in
%VALUES%
        *) return 2 ;;
    esac
}

_rayqd_word() { # COMMAND: completes what it takes without a flag
    case $1 in
%WORDS%
        *) return 2 ;;
    esac
}

_rayqd_flags() { # COMMAND
    local -a flags settings
    case $1 in
%SWITCHES%
    esac
    settings=(
%SETTINGS%
    )
    _describe -o flag flags
    case $1 in
        %WITHOUT_SETTINGS%) ;;
        *) _describe -o setting settings -M 'm:{-_}={_-}' ;;
    esac
}

_rayqd_settings_file() {
    compset -P '@'
    _files -g '*.toml'
}

_rayqd() {
    local command=$words[2] previous=$words[CURRENT-1]
    local -a commands
    if ((CURRENT == 2)); then
        commands=(
%COMMANDS%
        )
        _describe command commands
    elif [[ $PREFIX == @* || $previous == @ ]]; then
        _rayqd_settings_file
    elif [[ $PREFIX == --*=* ]]; then
        local flag=${PREFIX%%=*}
        compset -P '*='
        _rayqd_value $flag $command
    elif [[ $PREFIX == -* ]]; then
        _rayqd_flags $command
    else
        _rayqd_value "$previous" $command
        (($? == 2)) || return 0
        _rayqd_word $command
        (($? == 2)) || return 0
        local -a files=(*.toml(N) configs/*.toml(N))
        compadd -P @ -- $files
    fi
}

if [[ $funcstack[1] == _rayqd ]]; then
    _rayqd "$@"
else
    compdef _rayqd rayqd
fi
