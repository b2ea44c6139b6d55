# Sourced by every entry point: leaves the shell in the repository root and sets PYTHON to an
# interpreter that satisfies requirements.txt. That is the active environment if it does, else
# .venv, which is made or brought up to date when needed. PYTHON, if set, is the interpreter to use
# or to build .venv from.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
    echo "error: $*" >&2
    exit 2
}

satisfied() { "$1" scripts/check_env.py >/dev/null 2>&1; }

# Python 3.10 or newer to build .venv from; the version is read, not guessed from the name.
find_python() {
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    die "no Python 3.10 or newer found (looked for: ${PYTHON:-python3, python3.10 … python3.13}); install one, or name it: PYTHON=/path/to/python"
}

# What .venv was made from: an interrupted or outdated one carries another text.
stamp() {
    "$1" -c 'import hashlib, sys; print(*sys.version_info[:2], hashlib.sha256(open("requirements.txt", "rb").read()).hexdigest())' 2>/dev/null
}

ready() {
    [[ -x .venv/bin/python ]] || return 1
    # Without a stamp it's a user's own: good as long as it satisfies.
    if [[ -f .venv/made-from ]]; then
        [[ "$(cat .venv/made-from)" == "$(stamp .venv/bin/python)" ]] || return 1
    fi
    satisfied .venv/bin/python
}

make_venv() {
    local base
    base=$(find_python) || exit 2
    if [[ -x .venv/bin/python && "$(cat .venv/made-from 2>/dev/null)" != unfinished ]] &&
        .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "Bringing .venv up to date with requirements.txt …" >&2
    else
        echo "Making .venv from requirements.txt (once; PyTorch takes a few minutes) …" >&2
        "$base" -m venv --clear .venv >/dev/null 2>&1 || venv_without_ensurepip "$base"
    fi
    echo unfinished >.venv/made-from
    .venv/bin/python -m pip install --disable-pip-version-check -r requirements.txt >&2 ||
        die "pip could not install requirements.txt (its message is above); then run the same command again"
    stamp .venv/bin/python >.venv/made-from
}

# Debian's python3 comes without ensurepip: make the environment bare, and put pip in from PyPI.
venv_without_ensurepip() {
    if ! "$1" -m venv --clear --without-pip .venv >/dev/null 2>&1 ||
        ! .venv/bin/python scripts/get_pip.py >/dev/null 2>&1; then
        die "$1 can't make a virtual environment; install its venv module (Debian: apt install python3-venv) or activate an environment that satisfies requirements.txt"
    fi
}

choose_python() {
    local name
    for name in ${PYTHON:-python python3}; do
        if satisfied "$name"; then
            PYTHON=$(command -v "$name")
            return
        fi
    done
    if ! ready; then
        # One maker at a time: the second waits here and finds it ready.
        exec 9<>requirements.txt
        ! command -v flock >/dev/null || flock 9
        # Children inherit the lock: a pip that outlives a killed shell still holds it.
        ready || make_venv
        exec 9>&-
    fi
    PYTHON=$PWD/.venv/bin/python
}

# protocol NAME TRAINER DATASET SEED [CONFIG] [KEY VALUE ...]: one model's runs, shown as they go.
protocol() {
    [[ $# -ge 4 ]] || die "usage: scripts/$1.sh TRAINER DATASET SEED [CONFIG] [KEY VALUE ...]"
    local name=$1 trainer=$2 dataset=$3 seed=$4
    shift 4
    exec "$PYTHON" scripts/run_protocol.py "$name" --show --jobs 1 \
        --trainers "$trainer" --datasets "$dataset" --seeds "$seed" \
        ${DATA:+--root "$DATA"} --output "${OUTPUT:-output}" --source "${SOURCE:-imagenet}" \
        ${SHOTS:+--shots $SHOTS} --opts "$@"
}

choose_python
export PYTHON
