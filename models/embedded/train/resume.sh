#!/bin/sh
# Go on from a finished bundle, in one sitting at a GPU: a longer decoder stage, then the generator, on fresh speech.
#     SEED=5000000 sh resume.sh WORK_FOLDER TEXT_FOLDER [BUNDLE_FOLDER]
# Encoder and codebooks stay as they are, so the generator's codes keep their meaning. The two trainings take turns,
# because they share a GPU badly; speech and tokens are made all along, so the generator, which comes second, begins
# with more than a hundred hours. Run again with the same folder, it goes on where it stopped.
# Seconds: DECODER, GENERATOR. Another SEED each sitting. The last line of the log is "done".
set -u
cd "$(dirname "$0")"
work=$1 text=$2 bundle=${3:-..}
mkdir -p "$work/logs"
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 NO_TORCH_COMPILE=1
say() { echo "$(date +%T) $*"; }

say speech
[ -e "$work/from/codec/mimi/model.safetensors" ] || python3 unpack.py --bundle "$bundle" --out "$work/from" || exit 1
mkdir -p "$work/speech"
rm -f "$work/speech/stop"
nice -n 19 python3 speech.py --text "$text" --out "$work/speech" --workers "${WORKERS:-14}" --seed "${SEED:-5000000}" \
    >"$work/logs/speech.log" 2>&1 &
nice -n 5 python3 tokens.py --speech "$work/speech" --codec "$work/from/codec" --out "$work/tokens" --keep-hours 40 \
    >"$work/logs/tokens.log" 2>&1 &
tokens=$!

if ! [ -e "$work/decoder/done" ]; then
    say decoder
    python3 codec_train.py decoder --speech "$work/speech" --full "$work/from/codec" --out "$work/decoder" \
        --seconds "${DECODER:-400}" --batch 24 --peak 4e-4 --hours 30 --keep 500 >"$work/logs/decoder.log" 2>&1 ||
        say "decoder failed, see its log"
fi
if ! [ -e "$work/generator/done" ]; then
    say generator
    python3 generator_train.py --tokens "$work/tokens" --out "$work/generator" --start "$work/from/generator" \
        --seconds "${GENERATOR:-1000}" --peak 1.2e-3 --dropout 0.05 --capacity 120000000 --keep 500 \
        --least-rows 150000 >"$work/logs/generator.log" 2>&1 || say "generator failed, see its log"
fi
touch "$work/speech/stop"
kill "$tokens"
say done
