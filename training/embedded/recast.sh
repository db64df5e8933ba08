#!/bin/sh
# Go on from a finished bundle on new speech of Kokoro's voices: codec, then generator.
#     GPUS=2 SEED=15000000 sh recast.sh WORK_FOLDER TEXT_FOLDER KOKORO_FILE [BUNDLE_FOLDER]
# On two GPUs the second one makes speech while the first one trains the codec; when its encoder is finished, the decoder goes
# on there, and the second one makes tokens and trains the generator, which has compiled meanwhile. On one GPU: one after the other.
# Run again with the same folder, it goes on where it stopped. The last line of the log is "done", or "failed".
# Seconds: FULL, DECODER, GENERATOR. FULL=0 keeps the bundle's encoder and codebooks, and the codes their meaning; DECODER=0
# leaves that stage out. FRESH=1: a codec from nothing, when its shape is another; the generator's weights that know codes
# begin from nothing too. HOURS of speech, SEED: another one each sitting. RECORDERS share the making of it.
# On two GPUs the speech ends with the encoder, whatever HOURS says. A codec that breaks off is used as it was last stored.
# CODEC, LEARN: more options of the codec and the generator. BESIDE: a command for the first GPU, once the encoder is finished.
# TINY=1: seconds of everything on a CPU.
set -u
cd "$(dirname "$0")"
work=$1 text=$2 kokoro=$3 bundle=${4:-..}
mkdir -p "$work/logs" "$work/speech" "$work/tokens"
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 NO_TORCH_COMPILE=1
say() { echo "$(date +%T) $*"; }
fail() { # the file `stop` ends the steps that would wait for ever
    say "$1 failed, see its log"
    touch "$work/failed" "$work/speech/stop" "$work/tokens/stop"
}
broken_off() {
    [ -e "$work/full/mimi/model.safetensors" ] || { fail codec; return; }
    say "codec broke off, see its log"
    touch "$work/full/done"
}
first='' second=''
[ "${GPUS:-1}" = 2 ] && first=0 second=1
on() { # on GPU COMMAND…: all of them when no GPU is named
    gpu=$1
    shift
    if [ -n "$gpu" ]; then CUDA_VISIBLE_DEVICES=$gpu "$@"; else "$@"; fi
}
start="--start $work/from/codec" codes=''
[ -n "${FRESH:-}" ] && start='' codes=--new-codes
few='' tiny='' rows=3000000 hours_first=0.3 recorders=${RECORDERS:-1}
if [ -n "${TINY:-}" ]; then
    FULL=${FULL:-8} DECODER=${DECODER:-8} GENERATOR=${GENERATOR:-12} HOURS=${HOURS:-0.012} recorders=1 rows=200 hours_first=0.002
    few='--at-once 32 --area-s 4 --shard-s 8 --readers 1'
    tiny='--batch 2 --report 1 --keep 4 --hours 1 --plain-steps 2 --windows 256 --periods 2 --width 4'
fi

say speech
[ -e "$work/from/codec/mimi/model.safetensors" ] || python3 unpack.py --bundle "$bundle" --out "$work/from" || exit 1
rm -f "$work/speech/stop" "$work/tokens/stop" "$work/failed"
each=$(awk "BEGIN {print ${HOURS:-100} / $recorders}")
recording=''
for number in $(seq 0 $((recorders - 1))); do
    { on "$second" nice -n 5 python3 recorder.py --text "$text" --kokoro "$kokoro" --out "$work/speech" --hours "$each" \
        --seed $((${SEED:-15000000} + number * 50000)) --first $((number * 50000)) $few >>"$work/logs/speech$number.log" 2>&1 ||
        fail speech; } &
    recording="$recording $!"
done

generate() {
    [ -e "$work/generator/done" ] && return
    say generator
    on "$second" python3 generator_train.py --tokens "$work/tokens" --out "$work/generator" --start "$work/from/generator" $codes \
        --seconds "${GENERATOR:-700}" --peak 1e-3 --dropout "${DROPOUT:-0.1}" --capacity 120000000 --keep 1000 \
        --least-rows $rows ${LEARN:-} ${TINY:+--batch 2 --report 1 --capacity 200000} >"$work/logs/generator.log" 2>&1 || fail generator
}
if [ -n "$second" ]; then
    generate &
    generating=$!
fi

if [ "${FULL:-300}" = 0 ]; then
    mkdir -p "$work/full" && cp -r "$work/from/codec/mimi" "$work/full/" && touch "$work/full/done"
fi
stage=both
[ "${DECODER:-300}" = 0 ] && stage=full
if ! [ -e "$work/full/done" ] || { [ $stage = both ] && ! [ -e "$work/decoder/done" ]; }; then
    say codec
    { on "$first" python3 codec_train.py $stage --speech "$work/speech" $start --out "$work/full" \
        --seconds "${FULL:-300}" --batch 32 --peak 6e-4 --hours 90 --least-hours $hours_first --keep 1000 \
        --decoder-out "$work/decoder" --decoder-seconds "${DECODER:-300}" $tiny ${CODEC:-} >"$work/logs/codec.log" 2>&1 ||
        broken_off; } &
    training=$!
    while ! [ -e "$work/full/done" ] && ! [ -e "$work/failed" ]; do sleep 0.5; done
    [ -n "$second" ] || wait $training
fi
[ -n "$second" ] && touch "$work/speech/stop" # what there is must do: the second GPU is the generator's now
if [ -n "${BESIDE:-}" ]; then
    say beside
    on "$first" sh -c "$BESIDE" >"$work/logs/beside.log" 2>&1 &
fi
wait $recording
say tokens
on "$second" nice -n 5 python3 tokens.py --speech "$work/speech" --codec "$work/full" --out "$work/tokens" --keep-hours 1000 \
    >>"$work/logs/tokens.log" 2>&1 &
if [ -n "$second" ]; then wait $generating; else generate; fi
[ -n "${training:-}" ] && wait $training
touch "$work/speech/stop" "$work/tokens/stop"
wait
[ -e "$work/failed" ] && { say failed; exit 1; }
say done
