// When each stage gave its first and its last output, as a table with bars.
const PLAYED = 'played';
const ms = (value) => (value === null ? '' : `${Math.round(value)} ms`);

// times: {answer, firstAudio, playing, played} of this page, in ms since the request was sent; null: it did not happen.
export function showWaterfall(root, summary, times, underruns) {
  const start = Math.max(0, times.firstAudio - summary.time_to_first_audio_ms); // of the request at the gateway
  const rows = summary.stages.map(({ stage, first_output_ms: first, last_output_ms: last }) => ({
    name: stage,
    begin: start,
    first: start + first,
    last: start + last,
  }));
  rows.push({ name: 'received here', begin: 0, first: times.firstAudio, last: times.received });
  if (times.playing !== null) rows.push({ name: PLAYED, begin: 0, first: times.playing, last: times.played });
  // Playing takes as long as the speech, which would leave no room for what comes before the first audio.
  const end = 1.1 * Math.max(...rows.filter((row) => row.name !== PLAYED).map((row) => row.last), 1);
  const caption = `First audio here after ${ms(times.firstAudio)}; all ${(summary.audio_ms / 1000).toFixed(2)} s made `
    + `after ${ms(times.received)}, ${(1 / summary.real_time_factor).toFixed(1)} times as fast as they are heard.`;
  root.querySelector('caption').textContent = caption;
  root.querySelector('#scale').textContent = `0 to ${ms(end)}`;
  root.querySelector('tbody').replaceChildren(...rows.map((row) => line(row, end)));
  facts(root.querySelector('dl'), {
    'spoken as': summary.spoken_text,
    'why it ended': summary.finish_reason.replaceAll('_', ' '),
    'buffer underruns': underruns,
    seed: summary.seed,
    frames: summary.frames,
    'prompt tokens': summary.prompt_tokens,
    trace: summary.trace_id,
  });
  root.hidden = false;
}

function line(row, end) {
  const tr = document.createElement('tr');
  const name = cell('th', row.name);
  name.scope = 'row';
  const chart = cell('td', '');
  chart.className = 'chart';
  const bar = document.createElement('div');
  bar.className = 'bar';
  bar.setAttribute('aria-hidden', 'true');
  const work = part('work', row.first, Math.min(row.last, end), end);
  work.classList.toggle('goes-on', row.last > end);
  bar.append(part('wait', row.begin, Math.min(row.first, end), end), work);
  const first = part('first', Math.min(row.first, end), row.first, end);
  first.textContent = '◆';
  bar.append(first);
  chart.append(bar);
  tr.append(name, cell('td', ms(row.first)), cell('td', ms(row.last)), chart);
  return tr;
}

function part(kind, from, to, end) {
  const span = document.createElement('span');
  span.className = kind;
  span.style.left = `${(100 * from) / end}%`;
  if (kind !== 'first') span.style.width = `${(100 * Math.max(0, to - from)) / end}%`;
  return span;
}

export function facts(list, values) {
  list.replaceChildren(...Object.entries(values).flatMap(([name, value]) => [cell('dt', name), cell('dd', value)]));
}

function cell(kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  return element;
}
