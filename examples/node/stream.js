// Audio as it is generated, from Node: node stream.js [address] [file]
const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address = 'localhost:50050', file = 'stream.wav'] = process.argv.slice(2);
const protos = path.join(__dirname, '..', '..', 'protos');
const definition = loader.loadSync('csm/speech/v1/speech.proto', { includeDirs: [protos], enums: String, longs: String });
const { SpeechService } = grpc.loadPackageDefinition(definition).csm.speech.v1;

const client = new SpeechService(address, grpc.credentials.createInsecure());
const out = fs.createWriteStream(file);
const call = client.StreamSynthesize(
  { utterance: { text: 'Hello there. How are you today?', speaker: 0 }, output: { container: 'CONTAINER_WAV' } },
  { deadline: Date.now() + 60_000 },
);

call.on('data', ({ started, audio, finished }) => {
  if (started) console.log(`trace ${started.traceId}`);
  if (audio) out.write(audio.data);
  if (finished) console.log(`${finished.summary.frames} frames, ${finished.summary.finishReason}`);
});
call.on('error', (error) => {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
call.on('end', () => out.end());
