// The HTTP API, as this page uses it.
const BASE = new URL('../', import.meta.url);

export class Failure extends Error {
  constructor(status, { message, param = null }) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

async function call(path, options, token) {
  const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const answer = await fetch(new URL(path, BASE), { ...options, headers });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Failure(answer.status, body.error ?? { message: `the server answered ${answer.status}` });
}

export async function voices(token) {
  return (await (await call('v1/audio/voices', {}, token)).json()).voices;
}

export async function model(token) {
  return (await (await call('v1/models', {}, token)).json()).data[0];
}

export async function verify(file, speeds, token) {
  return (await call(`v1/audio/watermark?speeds=${speeds ? 1 : 0}`, { method: 'POST', body: file }, token)).json();
}

// Events: {samples: Int16Array} as they come, then {summary}. request: fields of POST /v1/audio/speech.
export async function* speak(request, { token, signal, onAnswer }) {
  const body = JSON.stringify({ model: 'csm', ...request, response_format: 'pcm', stream_format: 'sse' });
  const headers = { 'content-type': 'application/json' };
  const answer = await call('v1/audio/speech', { method: 'POST', headers, body, signal }, token);
  onAnswer(answer.headers.get('x-request-id'));
  let text = '';
  let summary = null;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += value;
    const blocks = text.split('\n\n');
    text = blocks.pop();
    for (const block of blocks) {
      const event = JSON.parse(block.slice('data: '.length));
      if (event.type === 'speech.audio.delta') yield { samples: decoded(event.audio) };
      if (event.type === 'speech.audio.done') summary = event.csm;
    }
  }
  if (summary === null) throw new Failure(200, { message: 'the connection ended before the speech did' });
  yield { summary };
}

function decoded(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}
