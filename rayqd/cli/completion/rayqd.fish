# rayqd completion for fish: rayqd completion fish | source

function __rayqd_command # COMMAND...: whether one of them stands on the line
    set -l words (commandline -opc)
    test (count $words) -ge 2; and contains -- $words[2] $argv
end

function __rayqd_settings_files
    set -l word (commandline -ct)
    if string match -q -- '@*' $word
        for path in (string sub -s 2 -- $word)*
            test -d $path; and echo @$path/
            string match -q -- '*.toml' $path; and echo @$path
        end
    else if test -z "$word"
        for path in *.toml configs/*.toml
            echo @$path
        end
    end
end

complete -c rayqd -e
complete -c rayqd -f
%COMPLETIONS%
