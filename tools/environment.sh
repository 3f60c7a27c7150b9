# A virtual environment with torch: the one that is installed if it satisfies the bound, else the pinned one.
set -eu

bound=$(sed -n 's/.*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
pinned=$(sed -n 's/^torch==//p' constraints.txt)

has_torch() { # of the Python "$1", in a version that satisfies the bound
    "$1" - "$bound" 2>/dev/null <<'EOF'
import sys, torch
release = lambda text: [int(part) for part in text.split("+")[0].split(".")[:2]]
sys.exit(release(torch.__version__) < release(sys.argv[1]))
EOF
}

command -v "$PYTHON" >/dev/null || {
    echo "there is no $PYTHON here; name Python 3.11 or later: make PYTHON=python3.12 ..." >&2
    exit 1
}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$("$PYTHON" --version) is too old; name Python 3.11 or later: make PYTHON=python3.12 ..." >&2
    exit 1
}

# The new environment is asked, not $PYTHON: if that is an environment itself, its packages are not inherited.
if has_torch "$PYTHON" && "$PYTHON" -m venv --clear --system-site-packages "$VENV" && has_torch "$VENV/bin/python"; then
    echo "using the installed torch $("$VENV/bin/python" -c 'import torch; print(torch.__version__)')"
    grep -v '^torch==' constraints.txt > "$VENV/constraints.txt"
else
    "$PYTHON" -m venv --clear "$VENV"
    cp constraints.txt "$VENV/constraints.txt"
    echo "installing torch $pinned: a CPU build takes about 0.8 GB on disk, one with CUDA several GB."
    echo "On Linux the default index has the CUDA build; for the CPU build stop here and run"
    echo "    make TORCH_INDEX=https://download.pytorch.org/whl/cpu ..."
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$pinned"
fi
