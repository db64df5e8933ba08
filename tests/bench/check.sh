#!/usr/bin/env bash
# Everything that only a GPU can show, in one go:   tests/bench/check.sh [PART…]
#
#   tests      kernels against the reference operations, the graph runner, the codec
#   variants   milliseconds a frame for every choice of kernels and batch (which is which: fused_llama.KernelPlan)
#   bench      the table of the generator through its engine, first frames, joins, memory
#   conversation  first frame of an early and a late turn, at 1 and 256 conversations
#   profile    time of each kernel in a frame, batch 1, 64 and 512
#   products   each product of a frame beside its floor
#   codec      the codec's passes beside stock moshi's
#   watermark  seconds of audio marked a second, by streams, beside the generator's time
#   prompts    clips of context audio encoded a second, beside stock moshi's
#   shared     frames beside codec and watermark under MPS (two minutes; not among the parts run by default)
#   power      watts, clock and joules of each kind of kernel in a frame (not among the parts run by default)
#   peers      what others do: a torchtune loop, transformers (minutes; not among the parts run by default)
#
# Each part's output goes to the screen and to $OUT (default out/gpu); a part that fails or takes too long
# stops no other. LIMIT_S, default 530, is for all of them together. Installs wheels that lie in $WHEELS
# (default .whl) into a folder of its own, for machines that reach no registry.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-out/gpu} PYTHON=${PYTHON:-python3} WHEELS=${WHEELS:-.whl} LIMIT_S=${LIMIT_S:-530}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 PYTHONPATH=.:protos:tests:tests/bench${PYTHONPATH:+:$PYTHONPATH}
if compgen -G "$WHEELS/*.whl" >/dev/null; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl 2>&1 | tail -3
    export PYTHONPATH=$PYTHONPATH:$site
fi
summary=()

# part NAME SECONDS COMMAND…: runs it for at most so long, or for what is left
part() {
    local name=$1 most=$2 left=$((LIMIT_S - SECONDS)) began=$SECONDS code
    shift 2
    if ((left < 15)); then summary+=("$name: not run, the time is up"); return; fi
    echo "== $name"
    timeout -k 5 $((most < left ? most : left)) "$@" 2>&1 | tee "$OUT/$name.txt"
    code=${PIPESTATUS[0]}
    summary+=("$name: exit $code after $((SECONDS - began)) s")
}

# all_tests SECONDS: compiling is most of it: side by side, each with its own log, on a device that has room.
all_tests() {
    local test=("$PYTHON" -m pytest -q -p no:cacheprovider --tb=short -W ignore --override-ini=addopts=--import-mode=importlib -m "gpu and not slow")
    local failed=0 jobs=() logs=()
    start() { local log; log=$(mktemp); timeout -k 5 "$1" "${test[@]}" "${@:2}" >"$log" 2>&1 & jobs+=($!); logs+=("$log"); }
    start "$1" tests/unit/backbone/test_kernels.py -k "frames_of or (not products and not step)"
    start "$1" tests/unit/backbone/test_kernels.py -k "step"
    start "$1" tests/unit/backbone/test_kernels.py -k "products and dtype0 and not frames_of"
    start "$1" tests/unit/backbone/test_kernels.py -k "products and dtype1"
    start "$1" tests/gpu
    start "$1" tests/gpu -m "gpu and slow" -k narrow
    start "$1" tests/gpu -m "gpu and slow" -k "csm-1b and bf16 and library"
    start "$1" tests/gpu -m "gpu and slow" -k "csm-1b and bf16 and matvec"
    start "$1" tests/unit/backbone/test_eager_runner_cuda.py tests/unit/backbone/test_row_kernels.py tests/unit/backbone/test_row_attention.py
    start "$1" tests/unit/codec/test_kernels.py -k "test_product"
    start "$1" tests/unit/codec/test_kernels.py -k "not test_product"
    start "$1" tests/unit/codec tests/unit/tokenizer --ignore=tests/unit/codec/test_kernels.py
    start "$1" tests/unit/watermark
    for index in "${!jobs[@]}"; do
        wait "${jobs[$index]}" || failed=1
        tail -c 4000 "${logs[$index]}"
    done
    return $failed
}
export -f all_tests
export PYTHON

"$PYTHON" - <<'PY' 2>&1 | tee "$OUT/machine.txt"
import platform, torch, triton
print(torch.cuda.get_device_name(), "| torch", torch.__version__, "| triton", triton.__version__, "| Python", platform.python_version())
PY

for name in "${@:-tests variants bench conversation profile products codec watermark prompts}"; do
    for each in $name; do
        case $each in
        tests)
            limit=$((LIMIT_S - SECONDS - 20))
            part tests 210 bash -c "all_tests $((limit < 190 ? limit : 190))" ;;
        variants) part variants 150 "$PYTHON" tests/bench/bench_variants.py ;;
        bench)
            part bench 200 "$PYTHON" tests/bench/bench_generator.py --only ours first joins memory
            # One kernel that fails must not cost the whole table.
            [[ ${summary[-1]} == *"exit 0"* || ${summary[-1]} == *"exit 124"* ]] ||
                part bench-library 150 "$PYTHON" tests/bench/bench_generator.py --library --only ours first joins ;;
        conversation) part conversation 240 "$PYTHON" tests/bench/bench_conversation.py ;;
        profile) part profile 90 "$PYTHON" tests/bench/profile_frame.py ;;
        products) part products 60 "$PYTHON" tests/bench/bench_products.py ;;
        codec) part codec 120 "$PYTHON" tests/bench/bench_codec.py ;;
        watermark) part watermark 140 "$PYTHON" tests/bench/bench_watermark.py ;;
        prompts) part prompts 90 "$PYTHON" tests/bench/bench_prompts.py ;;
        shared) part shared 150 "$PYTHON" tests/bench/bench_shared.py --variants plain priority=1 percentage=25 ;;
        power) part power 90 "$PYTHON" tests/bench/bench_power.py ;;
        peers) part peers 480 "$PYTHON" tests/bench/bench_generator.py --only torchtune transformers ;;
        *) echo "no part $each" >&2; exit 2 ;;
        esac
    done
done
printf '== after %s s\n' "$SECONDS"
printf '%s\n' "${summary[@]}" | tee "$OUT/summary.txt"
! printf '%s\n' "${summary[@]}" | grep -qv "exit 0"
