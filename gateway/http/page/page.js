import { Player, RATE_HZ } from './player.js';
import { Failure, model, speak, verify, voices } from './speech.js';
import { facts, showWaterfall } from './waterfall.js';
import { wav } from './wav.js';

const at = (id) => document.getElementById(id);
const player = new Player();
window.csm = { player }; // so that a test can listen to what is played
let speaking = null; // {abort, pieces, times}
let spoken = null; // Blob of the last speech

const now = () => performance.now();
const token = () => at('token').value.trim();
const status = (text) => { at('status').textContent = text; };

function failed(error) {
  at('error').textContent = error.message;
  if (error instanceof Failure && error.status === 401) at('token').focus();
  if (error instanceof Failure && error.param === 'input') at('text').focus();
}

async function list() {
  const chosen = at('voice').value;
  const [bundle, found] = await Promise.all([model(token()), voices(token())]);
  at('model').textContent = `${bundle.id}, version ${bundle.version}: ${bundle.description}`;
  at('voice').replaceChildren(...found.map(({ id, description }) => {
    const option = new Option(description ? `${id}: ${description}` : id, id);
    option.selected = id === chosen;
    return option;
  }));
  if (!found.length) at('voice').replaceChildren(new Option('no voices: speaker 0', ''));
  at('error').textContent = '';
}

async function start() {
  stop();
  const pieces = [];
  const run = { abort: new AbortController(), pieces, samples: 0, isPlayed: false, isWhole: false };
  run.times = { sent: now(), answer: null, firstAudio: null, received: null, playing: null, played: null };
  const since = () => now() - run.times.sent;
  run.since = since;
  run.underruns = 0;
  speaking = run;
  at('error').textContent = '';
  at('stop').disabled = false;
  at('progress').hidden = true;
  offer(null);
  status('Waiting for the first audio.');
  const opened = player.open().then(() => player.begin());
  opened.catch(failed);
  const seed = at('seed').value.trim();
  const request = { input: at('text').value, voice: at('voice').value || undefined };
  try {
    const body = seed ? { ...request, seed } : request;
    for await (const event of speak(body, {
      token: token(),
      signal: run.abort.signal,
      onAnswer: () => { run.times.answer = since(); },
    })) {
      if (event.samples) {
        run.times.firstAudio ??= since();
        run.samples += event.samples.length;
        pieces.push(event.samples);
        const samples = Float32Array.from(event.samples, (value) => value / 32768);
        await opened.then(() => player.play(samples), () => {});
      } else {
        run.times.received = since();
        run.summary = event.summary;
        run.isWhole = true;
        player.end();
        at('time-empty').hidden = true;
        offer(wav(pieces, RATE_HZ));
        show(run);
      }
    }
  } catch (error) {
    if (error.name !== 'AbortError') {
      failed(error instanceof TypeError ? new Error('the connection broke off') : error);
      player.begin();
      status('');
    }
    ended(run);
    return;
  }
  if (!player.node) ended(run);
}

function stop() {
  if (speaking === null) return;
  speaking.abort.abort();
  player.begin();
  status('Stopped.');
  ended(speaking);
}

function ended(run) {
  if (speaking !== run) return;
  speaking = null;
  at('stop').disabled = true;
  at('progress').hidden = true;
}

function show(run) {
  showWaterfall(at('waterfall'), run.summary, run.times, run.underruns);
}

function offer(blob) {
  spoken = blob;
  const link = at('download');
  if (link.href) URL.revokeObjectURL(link.href);
  link.removeAttribute('href');
  link.setAttribute('aria-disabled', String(blob === null));
  if (blob !== null) link.href = URL.createObjectURL(blob);
  at('verify-spoken').disabled = blob === null;
}

player.addEventListener('started', () => {
  if (speaking === null) return;
  speaking.times.playing = speaking.since();
  status(`Speaking. First audio after ${Math.round(speaking.times.firstAudio)} ms.`);
  at('progress').hidden = false;
});
player.addEventListener('playing', ({ detail }) => {
  if (speaking === null) return;
  const share = Math.round((100 * detail) / Math.max(speaking.samples, 1));
  at('progress').setAttribute('aria-valuenow', String(share));
  at('progress').firstElementChild.style.width = `${share}%`;
});
player.addEventListener('underrun', () => {
  if (speaking === null) return;
  speaking.underruns += 1;
  if (!speaking.isWhole) status('The loudspeaker waits for more audio.');
});
player.addEventListener('finished', () => {
  if (speaking === null || !speaking.isWhole) return;
  speaking.times.played = speaking.since();
  show(speaking);
  status(`Spoken: ${(speaking.samples / RATE_HZ).toFixed(2)} s.`);
  ended(speaking);
});

async function look(file) {
  const verdict = at('verdict');
  verdict.textContent = 'Looking for the watermark.';
  try {
    const found = await verify(file, at('speeds').checked, token());
    const said = document.createElement('p');
    said.className = found.found ? 'found' : 'not-found';
    said.textContent = said_of(found);
    const details = document.createElement('dl');
    facts(details, {
      confidence: `${found.confidence.toFixed(3)}, found from ${found.threshold.toFixed(3)} on`,
      searched: `${found.searched_s.toFixed(2)} s${found.limited ? ', then a limit ended the search' : ''}`,
      marks: found.marks.map((mark) => `${mark.start_s.toFixed(2)} to ${mark.end_s.toFixed(2)} s`).join(', ') || 'none',
    });
    verdict.replaceChildren(said, details);
  } catch (error) {
    verdict.textContent = '';
    failed(error);
  }
}

function said_of(found) {
  const words = {
    found: 'The watermark is there.',
    not_found: 'No watermark with this deployment’s key was found.',
    too_short: 'None was found, and the clip is too short to be sure.',
    silent: 'The clip is silent.',
    other_key: 'There is a watermark whose key is similar, but another.',
    limited: 'None was found in the part that was searched.',
  };
  return words[found.verdict] ?? found.verdict;
}

at('speak-form').addEventListener('submit', (event) => {
  event.preventDefault();
  start();
});
at('stop').addEventListener('click', stop);
at('text').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) at('speak-form').requestSubmit();
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') stop();
});
at('token').addEventListener('change', () => list().catch(failed));
at('verify-spoken').addEventListener('click', () => look(spoken));
at('file').addEventListener('change', () => {
  if (at('file').files.length) look(at('file').files[0]);
});
// Anywhere on the page: a file that misses the field would replace the page.
for (const kind of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, (event) => {
    if (!event.dataTransfer.types.includes('Files')) return;
    event.preventDefault();
    at('drop').classList.toggle('over', kind === 'dragover');
    if (kind === 'drop' && event.dataTransfer.files.length) look(event.dataTransfer.files[0]);
  });
}

list().catch(failed);
