# Sourced by scripts/demo and scripts/test: make .venv once and set $python to its interpreter.
# KERNELSIMP_PYTHON names an interpreter that already has what is needed; then nothing is installed.
# Usage: setup EXTRA   (demo or test). A second run with the same pyproject.toml installs nothing.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

newest_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$name"
            return
        fi
    done
    echo "no Python 3.11 or later on the PATH; install one or set KERNELSIMP_PYTHON" >&2
    return 2
}

setup() {
    local extra="$1"
    if [ -n "${KERNELSIMP_PYTHON:-}" ]; then
        python="$KERNELSIMP_PYTHON"
        export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
        return
    fi
    local venv="$root/.venv" base stamp
    python="$venv/bin/python"
    stamp="$venv/.stamp-$extra-$(cksum <"$root/pyproject.toml" | tr ' ' '-')"
    if [ -e "$stamp" ]; then
        return
    fi
    base="$(newest_python)" || exit 2
    echo "setting up .venv (once) ..." >&2
    [ -x "$python" ] || "$base" -m venv "$venv"
    "$python" -m pip install --quiet --disable-pip-version-check uv
    "$venv/bin/uv" pip install --quiet --python "$python" --editable "$root[$extra]"
    touch "$stamp"
}
