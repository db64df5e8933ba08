// OpenAI's speech API from Node, without a package: node speech.js [base URL] [file]
const fs = require('node:fs');
const { Readable } = require('node:stream');
const { pipeline } = require('node:stream/promises');

const [base = 'http://localhost:50055/v1', file = 'speech.mp3'] = process.argv.slice(2);

async function main() {
  const token = process.env.CSM_TOKEN;
  const answer = await fetch(`${base}/audio/speech`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(token ? { authorization: `Bearer ${token}` } : {}) },
    body: JSON.stringify({ model: 'csm', voice: 'heart', input: 'Hello there. How are you today?' }),
    signal: AbortSignal.timeout(60_000),
  });
  if (!answer.ok) {
    const { error } = await answer.json();
    throw new Error(`${answer.status} ${error.message}; again in ${answer.headers.get('retry-after') ?? '?'} s`);
  }
  // A connection that breaks off rejects here, so a file that is complete is a speech that is complete.
  await pipeline(Readable.fromWeb(answer.body), fs.createWriteStream(file));
  console.log(`${file}: ${fs.statSync(file).size} bytes of ${answer.headers.get('content-type')}`);
}

main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
