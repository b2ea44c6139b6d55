# Sourced by every entry point: leaves the shell in the repository root and sets PYTHON to an
# interpreter that satisfies requirements.txt. That is the active environment if it does, else
# .venv, which is made or brought up to date when needed. PYTHON, if set, is the interpreter to use
# or to build .venv from.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
    echo "error: $*" >&2
    exit 2
}

# Python 3.10 or newer, and pip, asking no index, finds nothing left to install.
satisfied() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null &&
        PIP_CONFIG_FILE=/dev/null "$1" -m pip --isolated --disable-pip-version-check install \
            --dry-run --no-index --no-deps -r requirements.txt >/dev/null 2>&1
}

# An environment whose making was interrupted, or whose Python is gone, is made anew.
make_venv() {
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        ! "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || break
        name=
    done
    [[ $name ]] || die "no Python 3.10 or newer found (looked for: ${PYTHON:-python3, python3.10 … python3.13}); install one, or name it: PYTHON=/path/to/python"
    if [[ -e .venv/unfinished ]] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        echo "Making .venv from requirements.txt (once; PyTorch takes a few minutes) …" >&2
        "$name" -m venv --clear .venv >/dev/null 2>&1 ||
            die "$name can't make a virtual environment; install its venv module (Debian: apt install python3-venv) or activate an environment that satisfies requirements.txt"
    else
        echo "Bringing .venv up to date with requirements.txt …" >&2
    fi
    touch .venv/unfinished
    .venv/bin/python -m pip install --disable-pip-version-check -r requirements.txt >&2 ||
        die "pip could not install requirements.txt (its message is above); then run the same command again"
    rm .venv/unfinished
}

ready() { [[ ! -e .venv/unfinished ]] && satisfied .venv/bin/python; }

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
