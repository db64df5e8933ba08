// Speech as it comes: samples go into an audio worklet, and from there through `output` to the loudspeaker.
export const RATE_HZ = 24000;
const LEAD_S = 0.12; // heard this long before playing begins, so that the next piece is there in time

export class Player extends EventTarget {
  #id = 0;
  #opening = null;

  // To be called in a handler of a click or a key: browsers let nothing sound before one.
  open() {
    this.#opening ??= this.#open().catch((error) => {
      this.#opening = null;
      throw error;
    });
    this.context?.resume();
    return this.#opening;
  }

  async #open() {
    this.context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: 'interactive' });
    if (!this.context.audioWorklet) {
      throw new Error('this browser plays sound only on https pages and on localhost; the download still works');
    }
    await this.context.audioWorklet.addModule(new URL('worklet.js', import.meta.url));
    this.node = new AudioWorkletNode(this.context, 'csm-playback', {
      numberOfInputs: 0,
      outputChannelCount: [1],
      processorOptions: { lead: Math.round(LEAD_S * RATE_HZ) },
    });
    this.output = new GainNode(this.context);
    this.node.connect(this.output).connect(this.context.destination);
    this.node.port.onmessage = ({ data }) => {
      if (data.id === this.#id) this.dispatchEvent(new CustomEvent(data.event, { detail: data.played }));
    };
    this.dispatchEvent(new CustomEvent('graph'));
  }

  begin() {
    this.#id += 1;
    this.node?.port.postMessage({ begin: this.#id });
  }

  // samples: Float32Array
  play(samples) {
    this.node?.port.postMessage({ samples });
  }

  end() {
    this.node?.port.postMessage({ end: true });
  }
}
