#!/bin/sh
# Give the four speakers Kokoro's voices: codec and generator go on from a finished bundle, on new speech.
#     SEED=9000000 sh recast.sh WORK_FOLDER TEXT_FOLDER KOKORO_FILE [BUNDLE_FOLDER]
# Speech is made on the GPU; the codec learns the new voices as soon as there is half an hour of it, then the tokens are
# made, then the decoder stage and the generator are trained: one after the other on one GPU; on two (GPUS=2) speech,
# tokens and decoder stage have the second one, and the generator, which compiles meanwhile, begins when the codec is
# done (without a codec stage, speech and tokens share the first one with the generator). Run again with the same folder, it goes on where it stopped. The last line of the log is "done", or "failed".
# Seconds: FULL, DECODER, GENERATOR. FULL=0 keeps the bundle's encoder and codebooks, and the codes their meaning; DECODER=0 leaves
# that stage out.
# FRESH=1: a codec from nothing, when its shape is another. HOURS of speech, SEED: another one each sitting. CODEC, DECODE,
# LEARN: more options of the codec, its decoder stage and the generator. TINY=1: seconds of everything on a CPU.
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
first=${GPUS:+0} second=${GPUS:+1}
[ "${GPUS:-1}" = 2 ] || { first='' second=''; }
making=$second # where speech and tokens are made
on() { # on GPU COMMAND…: all of them when no GPU is named
    gpu=$1
    shift
    if [ -n "$gpu" ]; then CUDA_VISIBLE_DEVICES=$gpu "$@"; else "$@"; fi
}
start="--start $work/from/codec" codes=--new-codes
[ -n "${FRESH:-}" ] && start=''
[ "${FULL:-360}" = 0 ] && making=$first codes=''
batch='' few='' rows=150000 hours_first=0.5
if [ -n "${TINY:-}" ]; then
    FULL=${FULL:-8} DECODER=${DECODER:-8} GENERATOR=${GENERATOR:-12} HOURS=${HOURS:-0.01}
    batch='--batch 2 --report 1 --hours 1 --plain-steps 2' few='--at-once 32 --area-s 4 --shard-s 8 --readers 1' rows=200 hours_first=0.002
fi

say speech
[ -e "$work/from/codec/mimi/model.safetensors" ] || python3 unpack.py --bundle "$bundle" --out "$work/from" || exit 1
rm -f "$work/speech/stop" "$work/tokens/stop" "$work/failed"
{ on "$making" nice -n 5 python3 recorder.py --text "$text" --kokoro "$kokoro" --out "$work/speech" --seed "${SEED:-9000000}" \
    --hours "${HOURS:-100}" $few >>"$work/logs/speech.log" 2>&1 || fail speech; } &
recording=$!

decode() {
    [ -e "$work/decoder/done" ] || [ "${DECODER:-240}" = 0 ] && return
    say decoder
    on "$second" python3 codec_train.py decoder --speech "$work/speech" --full "$work/full" --out "$work/decoder" \
        --seconds "${DECODER:-240}" --batch 16 --peak 3e-4 --hours 30 --least-hours $hours_first --keep 500 $batch \
        ${DECODE:-} >"$work/logs/decoder.log" 2>&1 || fail decoder
}
generate() {
    [ -e "$work/generator/done" ] && return
    say generator
    on "$first" python3 generator_train.py --tokens "$work/tokens" --out "$work/generator" --start "$work/from/generator" $codes \
        --seconds "${GENERATOR:-700}" --peak 1.2e-3 --dropout "${DROPOUT:-0.05}" --capacity 120000000 --keep 500 \
        --least-rows $rows ${LEARN:-} ${TINY:+--batch 2 --report 1 --capacity 200000} >"$work/logs/generator.log" 2>&1 || fail generator
}
if [ -n "$second" ]; then
    generate &
    generating=$!
fi

if [ "${FULL:-360}" = 0 ]; then
    mkdir -p "$work/full" && cp -r "$work/from/codec/mimi" "$work/full/" && touch "$work/full/done"
fi
if ! [ -e "$work/full/done" ]; then
    say codec
    on "$first" python3 codec_train.py full --speech "$work/speech" $start --out "$work/full" \
        --seconds "${FULL:-360}" --batch 16 --peak 6e-4 --hours 60 --least-hours $hours_first --keep 500 $batch \
        ${CODEC:-} >"$work/logs/full.log" 2>&1 || fail codec
    [ -e "$work/full/done" ] || { wait; say failed; exit 1; }
fi
say tokens
on "$making" nice -n 5 python3 tokens.py --speech "$work/speech" --codec "$work/full" --out "$work/tokens" --keep-hours 60 \
    >>"$work/logs/tokens.log" 2>&1 &

if [ -n "$second" ]; then
    wait $recording # beside a training the speech would be made at a fifth of its speed
    decode
    wait $generating
else
    decode
    generate
fi
touch "$work/speech/stop" "$work/tokens/stop"
wait
[ -e "$work/failed" ] && { say failed; exit 1; }
say done
