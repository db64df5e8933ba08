// Plays queued samples in order, and says what it has played. It begins once `lead` samples are there.
class Playback extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.lead = processorOptions.lead;
    this.reset();
    this.port.onmessage = ({ data }) => {
      if (data.samples) {
        this.queue.push(data.samples);
        this.queued += data.samples.length;
      } else if (data.end) {
        this.ended = true;
      } else {
        this.reset();
        this.id = data.begin;
      }
    };
  }

  reset() {
    this.queue = [];
    this.offset = 0; // in the first of the queue
    this.queued = 0;
    this.played = 0;
    this.reported = 0;
    this.playing = false;
    this.ended = false;
    this.done = false;
  }

  say(event) {
    this.reported = this.played;
    this.port.postMessage({ id: this.id, event, played: this.played });
  }

  process(inputs, [[out]]) {
    if (this.done) return true;
    if (!this.playing && (this.queued >= this.lead || this.ended)) {
      this.playing = true;
      this.say(this.played ? 'resumed' : 'started');
    }
    let at = 0;
    while (this.playing && at < out.length && this.queue.length) {
      const part = this.queue[0].subarray(this.offset, this.offset + out.length - at);
      out.set(part, at);
      at += part.length;
      this.offset += part.length;
      if (this.offset === this.queue[0].length) {
        this.queue.shift();
        this.offset = 0;
      }
    }
    this.queued -= at;
    this.played += at;
    if (this.playing && at < out.length) {
      this.playing = false;
      this.done = this.ended;
      this.say(this.ended ? 'finished' : 'underrun');
    } else if (this.played - this.reported >= sampleRate / 10) {
      this.say('playing');
    }
    return true;
  }
}

registerProcessor('csm-playback', Playback);
