// A conversation from Node: words as a language model gives them, speech as it is made: node converse.js [address] [file]
const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address = 'localhost:50050', file = 'converse.pcm'] = process.argv.slice(2);
const protos = path.join(__dirname, '..', '..', 'protos');
const definition = loader.loadSync('csm/speech/v1/speech.proto', { includeDirs: [protos], enums: String, longs: String, defaults: true });
const { SpeechService } = grpc.loadPackageDefinition(definition).csm.speech.v1;

const client = new SpeechService(address, grpc.credentials.createInsecure());
const out = fs.createWriteStream(file);
const call = client.Converse();

call.on('data', ({ unit, audio, turnFinished }) => {
  if (unit) console.log(`from sample ${unit.firstSample}: ${unit.text.trim()}`);
  if (audio) out.write(audio.data); // to the listener; when it speaks: call.write({ interrupt: { heard } })
  if (turnFinished) {
    console.log(`turn ${turnFinished.turn}: ${turnFinished.finishReason}`);
    call.end();
  }
});
call.on('error', (error) => {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
call.on('end', () => out.end());

call.write({ configure: { voice: 'heart' } });
for (const text of ['Good mor', 'ning. The train', ' leaves at seven.']) call.write({ appendText: { text } });
call.write({ flush: {} });
