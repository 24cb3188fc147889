// Plays speech while it arrives, one scheduled buffer after the other. (An AudioWorklet would need https, which a
// server in one's own network seldom has.)

const FIRST_LEAD = 0.1, LONGEST_LEAD = 2; // seconds that are held back before the sound starts

export class Player {
  constructor(rate) {
    this.rate = rate;
    this.context = new AudioContext({ sampleRate: rate });
    this.reset();
  }

  reset() {
    this.sources?.forEach((source) => { source.onended = null; source.stop(); });
    this.sources = new Set();
    this.waiting = []; // chunks that are held back
    this.lead = FIRST_LEAD;
    this.end = 0; // when, by the context's clock, all that is scheduled has been played
    this.begun = null; // when the first sample was played
    this.played = 0; // seconds that are scheduled
    this.dry = 0; // how often the sound stopped because no more had arrived
    this.finished = null; // resolves the promise of finish()
  }

  // Adds the next samples, Float32Array in [-1, 1].
  add(samples) {
    if (this.begun !== null && this.context.currentTime > this.end && !this.waiting.length) {
      this.dry += 1;
      this.lead = Math.min(2 * this.lead, LONGEST_LEAD);
    }
    this.waiting.push(samples);
    const held = this.waiting.reduce((sum, chunk) => sum + chunk.length, 0) / this.rate;
    if (this.context.currentTime < this.end || held >= this.lead) this.schedule();
  }

  // Plays the rest; resolves when all has been played.
  finish() {
    this.schedule();
    return new Promise((resolve) => {
      this.finished = resolve;
      if (!this.sources.size) resolve();
    });
  }

  stop() {
    const finished = this.finished;
    this.reset();
    finished?.();
  }

  // Seconds of the speech that have been heard.
  position() {
    return Math.max(0, this.played - Math.max(0, this.end - this.context.currentTime));
  }

  schedule() {
    for (const samples of this.waiting.splice(0)) {
      const buffer = this.context.createBuffer(1, samples.length, this.rate);
      buffer.copyToChannel(samples, 0);
      const source = this.context.createBufferSource();
      source.buffer = buffer;
      source.connect(this.context.destination);
      const start = Math.max(this.end, this.context.currentTime + 0.01);
      source.start(start);
      this.begun ??= start;
      this.end = start + buffer.duration;
      this.played += buffer.duration;
      this.sources.add(source);
      source.onended = () => {
        this.sources.delete(source);
        source.disconnect();
        if (!this.sources.size) this.finished?.();
      };
    }
  }
}

// A WAV file of 16-bit samples, Int16Array each.
export function wav(chunks, rate) {
  const bytes = chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0);
  const head = new DataView(new ArrayBuffer(44));
  const text = (at, value) => [...value].forEach((letter, i) => head.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); head.setUint32(4, 36 + bytes, true); text(8, "WAVEfmt ");
  head.setUint32(16, 16, true); head.setUint16(20, 1, true); head.setUint16(22, 1, true);
  head.setUint32(24, rate, true); head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true); head.setUint16(34, 16, true);
  text(36, "data"); head.setUint32(40, bytes, true);
  return new Blob([head, ...chunks], { type: "audio/wav" });
}
