#!/bin/sh
# By server reflection, without any generated code: sh examples/curl.sh [address]
set -eu
address=${1:-localhost:50050}
method=csm.speech.v1.SpeechService/Synthesize
request='{"utterance": {"text": "Hello there."}, "output": {"container": "CONTAINER_WAV"}}'

if command -v grpcurl >/dev/null; then
    answer=$(grpcurl -plaintext -d "$request" "$address" "$method")
else
    answer=$(buf curl --protocol grpc --http2-prior-knowledge -d "$request" "http://$address/$method")
fi
printf '%s' "$answer" | python3 -c 'import base64, json, sys; sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["audio"]))' > curl.wav
echo "curl.wav: $(wc -c < curl.wav) bytes"
