#!/usr/bin/env bash
# The whole chain under load, on a machine that may have nothing but Python, torch and a GPU:
#
#   tests/bench/bench_chain.sh                         CSM-1B's shapes, bf16, random weights, on the GPU
#   COMPARE=1 POINTS="512:6 1000:6" tests/bench/bench_chain.sh      on two GPUs: one backbone, then two
#   BUNDLE=embedded DEVICE=cpu SLOTS=8 POINTS="1:2 2:2" tests/bench/bench_chain.sh     the same anywhere
#
# Installs the wheels in $WHEELS (default .whl) into a folder of its own, then runs bench_chain.py, which
# says what else can be set. Its table goes to the screen and to $OUT (default out/chain).
set -uo pipefail
cd "$(dirname "$0")/../.."
export BEGAN_S=${BEGAN_S:-$(date +%s)} LIMIT_S=${LIMIT_S:-240} OUT=${OUT:-out/chain} PYTHONUNBUFFERED=1
PYTHON=${PYTHON:-python3} WHEELS=${WHEELS:-.whl}
export PYTHONPATH=.:protos:tests:tests/bench${PYTHONPATH:+:$PYTHONPATH}
for name in BEGAN_S LIMIT_S; do # counted with below; bench_chain.py checks the others
    [[ ${!name} =~ ^[0-9]{1,10}$ ]] || { printf '%s=%q: must be whole seconds\n' "$name" "${!name}" >&2; exit 1; }
done
site="" bench=""
# Only `timeout` knows the bench's process; what else runs is heard out.
trap 'kill -TERM $bench 2>/dev/null || exit 143' TERM
trap 'kill -INT $bench 2>/dev/null || exit 130' INT
if compgen -G "$WHEELS/*.whl" >/dev/null; then
    trap 'rm -rf "$site"' EXIT
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl 2>&1 | tail -3
    export PYTHONPATH=$PYTHONPATH:$site
fi
echo "[ $(($(date +%s) - 10#$BEGAN_S)) s] wheels installed"
ulimit -n "$(ulimit -Hn)" || true
# It keeps the limit itself; this is for the case that it hangs, with time to stop what it started.
timeout --foreground -k 45 $((10#$LIMIT_S + 20)) "$PYTHON" tests/bench/bench_chain.py &
bench=$!
until wait $bench; code=$?; ! kill -0 $bench 2>/dev/null; do :; done # a signal ends the wait before the bench
exit $code
