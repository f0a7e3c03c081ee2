#!/bin/sh
# Make .venv with a Python that is new enough, or say what is missing and how to get it.
#
#     scripts/make_venv.sh .venv [PYTHON]
#
# Without PYTHON the first of python3, python3.14, ... python3.11 that is new enough is taken.
set -eu

venv=$1
wanted=${2:-}

fail() {
    printf 'make: %s\n' "$@" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

python=${wanted:-$(find_python)}
[ -n "$python" ] || fail "modelkit needs Python 3.11 or newer, and found $(python3 --version 2>/dev/null || echo none)." \
    "Install one (Debian, Ubuntu: sudo apt-get install python3 python3-venv) or name yours: make PYTHON=/path/to/python3"
new_enough "$python" || fail "modelkit needs Python 3.11 or newer; '$python' is $("$python" --version 2>/dev/null || echo missing)." \
    "Name another one: make PYTHON=/path/to/python3"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual environments." \
    "Debian, Ubuntu: sudo apt-get install python3-venv"

printf 'making %s with %s\n' "$venv" "$("$python" --version)"
"$python" -m venv "$venv"
# Dependency groups (`pip install --group`) came with pip 25.1.
"$venv/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
