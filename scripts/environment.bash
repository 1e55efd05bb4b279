# What the scripts share: finding the project, a Python, and a virtual environment for it.
#
# Rules this file keeps: nothing is installed before the machine was looked at; what lies in the
# project is used as it is when it can be used, by whomever; a folder of other users is never
# written to. Sourced by bash, never run.

set -euo pipefail
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")

# The virtual environment in use; set by prepare_environment.
venv=

say() { printf '%s\n' "$*"; }

# End with a sentence: end STATUS WORDS...
end() {
    local status=$1
    shift
    printf '%s\n' "$*" >&2
    exit "$status"
}

runs() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

makes_environments() { runs "$1" && "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Print a Python that can run the gateway; $PYTHON alone when it is set. Falls back to any Python at
# all, so that the look at the machine can say what is wrong with it.
find_python() {
    local name
    for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if makes_environments "$name"; then
            command -v "$name"
            return
        fi
    done
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if "$name" -c '' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    end 5 "Python: found none, required is CPython 3.11, 3.12 or 3.13; install one of these with" \
        "its venv module and start again."
}

# Say in one sentence what this machine lacks and end with 5; needs nothing installed.
look_at_machine() {
    "$1" "$root/broker/machine.py" || exit $?
    makes_environments "$1" || [ -n "$venv" ] || end 5 "Python: $1 cannot make virtual" \
        "environments, required is CPython 3.11, 3.12 or 3.13 with venv; install python3-venv."
}

# Where a virtual environment may lie: in the project, else in this user's own cache. The one for a
# Python that $PYTHON names lies beside the usual one.
environment_places() {
    local name version=
    if [ -n "${PYTHON:-}" ]; then
        version=-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
    fi
    printf '%s\n' "$root/.venv$version"
    name=$(printf '%s' "$root" | sha256sum | cut -c 1-16)$version
    if [ -n "${XDG_CACHE_HOME:-}" ] || [ -n "${HOME:-}" ]; then
        printf '%s\n' "${XDG_CACHE_HOME:-$HOME/.cache}/omega-plugin-gateway/$name"
    fi
    printf '%s\n' "/tmp/omega-gateway-venv-$(id -u)/$name"
}

# What an environment was made from; a change of it means: install again.
environment_stamp() {
    {
        cat "$root/pyproject.toml"
        printf '%s\n' "$root" "$2"
        "$1" -c 'import sys; print(sys.version_info[:2])'
    } | sha256sum | cut -c 1-64
}

# Whether the environment at $1 runs and was made for $2 (run or test) of this very project.
is_prepared() {
    local kind
    runs "$1/bin/python" || return 1
    for kind in "$2" test; do
        if [ "$(cat "$1/.prepared-$kind" 2>/dev/null)" = "$(environment_stamp "$1/bin/python" \
            "$kind")" ]; then
            return 0
        fi
    done
    return 1
}

# Whether nobody else could have put something at $1: it lies in the project, whose scripts run
# anyway, or it and the folder around it are this user's.
is_trusted() {
    local around
    around=$(dirname "$1")
    [[ $1 = "$root"/* ]] ||
        { [ -O "$1" ] && [ ! -L "$1" ] && [ -O "$around" ] && [ ! -L "$around" ]; }
}

# Whether this user may make or change an environment at $1.
is_ours() {
    (umask 077 && mkdir -p "$(dirname "$1")") 2>/dev/null && mkdir -p "$1" 2>/dev/null || return 1
    [ -w "$1" ] && is_trusted "$1"
}

# Make the environment at $1 with the Python $2 for $3, one process at a time.
make_environment() {
    local extra=
    [ "$3" = test ] && extra='[test]'
    (
        flock 9
        if ! is_prepared "$1" "$3"; then
            say "making the virtual environment $1 with $2 (downloads on the first run)"
            "$2" -m venv --clear "$1" 9>&-
            "$1/bin/python" -m pip install -qq --disable-pip-version-check \
                --editable "$root$extra" 9>&-
            environment_stamp "$1/bin/python" "$3" >"$1/.prepared-$3"
        fi
    ) 9<"$1"
}

# Look at the machine, then find or make the environment for $1 (run or test). Sets venv and PATH.
prepare_environment() {
    local place python
    while read -r place; do
        if is_trusted "$place" && is_prepared "$place" "$1"; then
            venv=$place
            look_at_machine "$venv/bin/python"
            PATH=$venv/bin:$PATH
            return
        fi
    done < <(environment_places)
    python=$(find_python)
    look_at_machine "$python"
    while read -r place; do
        if is_ours "$place"; then
            make_environment "$place" "$python" "$1"
            venv=$place
            PATH=$venv/bin:$PATH
            return
        fi
    done < <(environment_places)
    end 5 "virtual environment: no folder for it can be written to; set XDG_CACHE_HOME to one."
}
