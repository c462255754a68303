# Sourced by the other tools: find_python prints an interpreter that is new enough and can make environments.

say() { printf '%s\n' "$*" >&2; }

can_install() { [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; }

# apt_install PACKAGE...: says what it installs; fails without noise of its own when apt does.
apt_install() {
    say "Installing with apt: $*"
    if [[ -z ${apt_lists_are_new:-} ]]; then
        apt-get update -qq >&2 </dev/null || say "apt-get update failed; going on with the lists there are."
        apt_lists_are_new=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null </dev/null
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

can_make_environments() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

first_new_enough() {
    local name
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if is_new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

find_python() {
    local python version
    if ! python=$(first_new_enough); then
        if [[ -n ${PYTHON:-} ]]; then
            say "PYTHON=$PYTHON does not run, or is older than 3.11."
            return 1
        fi
        if can_install; then
            apt_install python3 python3-venv || true
            first_new_enough >/dev/null || apt_install python3.11 python3.11-venv || true
        fi
        if ! python=$(first_new_enough); then
            say "Glissade needs Python 3.11 or newer. Install it (Debian 12: apt install python3 python3-venv)," \
                "or name one: make PYTHON=/path/to/python3.12 ..."
            return 1
        fi
    fi
    if ! can_make_environments "$python"; then
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        if can_install; then
            apt_install "python$version-venv" || apt_install python3-venv || true
        fi
        if ! can_make_environments "$python"; then
            say "$python cannot make virtual environments (no ensurepip)." \
                "On Debian or Ubuntu: apt install python$version-venv"
            return 1
        fi
    fi
    printf '%s\n' "$python"
}

# comes_from_wanted_python DIRECTORY: whether the environment was made by $PYTHON, when that is given.
comes_from_wanted_python() {
    local which='import sys; print(sys.version, sys.base_prefix)'
    [[ -z ${PYTHON:-} ]] || [[ $("$PYTHON" -c "$which" 2>&1) == "$("$1/bin/python" -c "$which" 2>&1)" ]]
}

# environment_is_ready DIRECTORY KEY: whether the directory holds a finished environment, made for this key.
environment_is_ready() {
    [[ -x $1/bin/python && -f $1/.made-for && $(<"$1/.made-for") == "$2" ]] && comes_from_wanted_python "$1"
}

# make_environment DIRECTORY: keeps one whose interpreter runs and whose scripts point here; makes it anew otherwise.
make_environment() {
    local directory=$1 python
    if "$directory/bin/python" -c 'import pip' >/dev/null 2>&1 \
        && head -n 1 "$directory/bin/pip" | grep -qF "$PWD/$directory/" \
        && comes_from_wanted_python "$directory"; then
        return
    fi
    python=$(find_python) || return
    say "Creating $directory with $python ($("$python" --version))"
    "$python" -m venv --clear "$directory"
}

pip_install() {
    local directory=$1
    shift
    "$directory/bin/python" -m pip install -qq --disable-pip-version-check --no-input "$@"
}
