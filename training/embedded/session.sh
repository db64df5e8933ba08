#!/bin/sh
# One sitting at a GPU: speech on the CPU cores all along, then codec, tokens, generator, decoder, watermark.
# Run it again with the same folder and it goes on where it stopped.
#     sh session.sh WORK_FOLDER TEXT_FOLDER
# Seconds per training: FULL, GENERATOR, DECODER, WATERMARK. The generator shares the GPU with the last two.
set -u
work=$1 text=$2
cd "$(dirname "$0")"
mkdir -p "$work/logs"
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 NO_TORCH_COMPILE=1
say() { echo "$(date +%T) $*"; }

say speech
rm -f "$work/speech/stop"
nice -n 19 python3 speech.py --text "$text" --out "$work/speech" --workers "${WORKERS:-15}" --seed "${SEED:-0}" \
    >"$work/logs/speech.log" 2>&1 &
if ! [ -e "$work/full/done" ]; then
    say codec
    python3 codec_train.py full --speech "$work/speech" --out "$work/full" --seconds "${FULL:-318}" \
        --hours 20 >"$work/logs/full.log" 2>&1 || exit 1
fi
say tokens, generator
python3 tokens.py --speech "$work/speech" --codec "$work/full" --out "$work/tokens" >"$work/logs/tokens.log" 2>&1 &
tokens=$!
python3 generator_train.py --tokens "$work/tokens" --out "$work/generator" --least-rows 150000 --seconds "${GENERATOR:-890}" \
    ${START:+--start "$START"} >"$work/logs/generator.log" 2>&1 &
generator=$!
say watermark
[ -e "$work/watermark/done" ] || python3 watermark_train.py --speech "$work/speech" --out "$work/watermark" \
    --seconds "${WATERMARK:-330}" >"$work/logs/watermark.log" 2>&1
say decoder
[ -e "$work/decoder/done" ] || python3 codec_train.py decoder --speech "$work/speech" --full "$work/full" \
    --out "$work/decoder" --seconds "${DECODER:-430}" --batch 24 --peak 4e-4 --hours 20 >"$work/logs/decoder.log" 2>&1
say waiting for the generator
wait $generator
touch "$work/speech/stop"
kill $tokens
say done
