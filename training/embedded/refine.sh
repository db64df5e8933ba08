#!/bin/sh
# Go on with a bundle's generator alone, on one GPU: its codec stays, and the codes their meaning. First fresh speech, a part of it
# texts of one or two words and letters, said TAKES times, of which the one is kept that the codec keeps clearest; then training.
#     SEED=16000000 sh refine.sh WORK_FOLDER TEXT_FOLDER KOKORO_FILE [BUNDLE_FOLDER]
# ONLY=speech makes speech alone, without a bundle, until somebody calls again with the same folder: that call takes it up.
# Seconds: SPEECH, LISTENER, GENERATOR. BRIEF: hours of takes. PEAK: the learning rate's. SEED: another one each sitting.
# The last line of the log is "done", or "failed". TINY=1: seconds of everything on a CPU.
set -u
cd "$(dirname "$0")"
work=$1 text=$2 kokoro=$3 bundle=${4:-../../models/embedded}
speech=${SPEECH:-200} seed=${SEED:-16000000}
mkdir -p "$work/logs" "$work/speech" "$work/brief" "$work/tokens"
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 NO_TORCH_COMPILE=1
say() { echo "$(date +%T) $*"; }
fail() {
    say "$1 failed, see its log"
    touch "$work/failed" "$work/speech/stop" "$work/brief/stop" "$work/tokens/stop"
}
few="--readers ${READERS:-5}" learn='' heard=''
if [ -n "${TINY:-}" ]; then
    few='--at-once 32 --area-s 4 --shard-s 8 --readers 1' learn='--batch 2 --report 1 --capacity 200000 --keep 4 --held-out 1'
    heard='--batch 4 --least-hours 0.001 --report 5'
fi
recorder() { # NAME SEED OPTIONS…
    name=$1 first_seed=$2
    shift 2
    nice -n 5 python3 recorder.py --text "$text" --kokoro "$kokoro" --out "$work/$name" --seed "$first_seed" $few "$@" \
        >>"$work/logs/$name.log" 2>&1 || fail "$name"
    touch "$work/$name.done"
}
tokens() { # NAME OPTIONS…
    name=$1
    shift
    nice -n 5 python3 tokens.py --speech "$work/$name" --codec "$work/from/codec" --out "$work/tokens" --keep-hours 100000 "$@" \
        >>"$work/logs/tokens-$name.log" 2>&1 || fail "tokens of $name"
}
if ! [ -e "$work/recording" ]; then
    touch "$work/recording"
    say speech
    recorder speech "$seed" --hours "${HOURS:-1000}" &
    recorder brief $((seed + 50000)) --hours "${BRIEF:-25}" --mix brief --takes "${TAKES:-4}" --first 50000 &
    { python3 takes.py --speech "$work/speech" --out "$work/listener.pt" --seconds "${LISTENER:-40}" $heard \
        >"$work/logs/listener.log" 2>&1 || fail listener; } &
fi
if [ "${ONLY:-}" = speech ]; then
    wait
    exit
fi
began=$(date +%s)
python3 unpack.py --bundle "$bundle" --out "$work/from" || fail unpack
tokens speech &
tokens brief --listener "$work/listener.pt" &
{ python3 generator_train.py --tokens "$work/tokens" --out "$work/generator" --start "$work/from/generator" --seconds "${GENERATOR:-170}" \
    --peak "${PEAK:-4e-4}" --warm-up 200 --heads-first 300 --dropout "${DROPOUT:-0.1}" --average "${AVERAGE:-0.002}" --capacity 60000000 --keep 1000 \
    --held-out 2 --least-rows 1000000000 $learn ${LEARN:-} >"$work/logs/generator.log" 2>&1 || fail generator; } &
training=$!
while [ $(($(date +%s) - began)) -lt "$speech" ] && ! [ -e "$work/failed" ]; do sleep 0.5; done
touch "$work/speech/stop" "$work/brief/stop"
say tokens
until [ -e "$work/speech.done" ] && [ -e "$work/brief.done" ]; do sleep 0.2; done
count() { find "$1" -name 'shard-*.npz' | wc -l; }
until [ "$(count "$work/tokens")" -ge $(($(count "$work/speech") + $(count "$work/brief"))) ] || [ -e "$work/failed" ]; do sleep 0.2; done
touch "$work/tokens/enough"
say generator
wait $training
touch "$work/tokens/stop"
wait
[ -e "$work/failed" ] && { say failed; exit 1; }
say done
