#!/usr/bin/env bash
# Makes or mends .venv. Called by `make setup`; PYTHON, PIP_ARGS and EXTRAS may be set.
#
# Not covered: two of these at once in one folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# torch 2.13.0 has wheels for Python 3.11 to 3.14
fits='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
version='import sys; print("%d.%d" % sys.version_info[:2])'

find_python() {
    local python found no_venv='' others=''
    for python in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        if "$python" -c "$fits" 2>/dev/null; then
            echo "$python"
            return
        fi
        found=$("$python" -c "$version" 2>/dev/null) || continue
        case $found in
            3.1[1-4]) no_venv=${no_venv:-$found} ;;
            *) others+=", $python is $found" ;;
        esac
    done
    if [ -n "$no_venv" ]; then
        echo "Python $no_venv has no venv module here: apt-get install python$no_venv-venv" >&2
    else
        others=${others:-, ${PYTHON:-python3} is not found}
        echo "Python 3.11 to 3.14 is needed (${others#, })." \
            "Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2
    fi
    return 1
}

usable() {
    # the stamp holds the folder's name: a .venv that was moved or copied has dead paths in it
    [ ! -e .venv/.installing ] &&
        .venv/bin/python -c "import pip; $fits" 2>/dev/null &&
        [ "$(cat .venv/.installed 2>/dev/null || pwd)" = "$(pwd)" ]
}

show_progress() {
    local tty=
    [ ! -t 1 ] || tty=1
    awk -v tty=$tty '
        function status(text) { if (tty) printf "\r\033[K%s", substr(text, 1, 76); fflush() }
        /^Collecting/ { n++; status("  " n " packages: " $2) }
        /^ *(Downloading|Using cached) .*MB\)/ {
            text = "  " n " packages: " $0
            sub(/-[^-]*-[^-]*-[^ ]*\.whl/, "", text)
            gsub(/ +/, " ", text)
            status(" " text)
            if (!tty && $0 ~ /[0-9][0-9][0-9.]* MB/) print " " text
        }
        /^Installing collected/ { status(""); print "  installing " gsub(/, /, "") + 1 " packages" }
        END { status("") }
    '
}

if usable; then
    echo "Bringing .venv up to date."
else
    python=$(find_python)
    echo "Making .venv with $("$python" --version). The first time takes some minutes."
    rm -rf .venv
    mkdir .venv
    touch .venv/.installing
    "$python" -m venv .venv
fi

# left behind by an install that was cut off; the next run starts afresh
touch .venv/.installing
if ! .venv/bin/python -m pip install --disable-pip-version-check ${PIP_ARGS:-} \
    -c constraints.txt -e ".${EXTRAS:+[$EXTRAS]}" 2>&1 | tee .venv/install.log | show_progress; then
    grep '^ERROR' .venv/install.log >&2 || true
    echo "The set-up stopped. All that it said is in .venv/install.log. Again: make setup" >&2
    exit 1
fi
.venv/bin/python -m course.lab --install-kernel
pwd >.venv/.installed
rm .venv/.installing
