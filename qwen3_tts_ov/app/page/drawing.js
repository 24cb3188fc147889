// Waveform and spectrogram, drawn while the speech arrives. Columns of 4 ms at first; when the picture is full, pairs
// of columns are merged and each stands for twice the time.

const WIDTH = 1024, ROWS = 80, WINDOW = 512; // columns, frequencies, samples of a spectrum
const QUIET = -80; // dB; below it the spectrogram shows nothing

export class Drawing {
  constructor(waveform, spectrogram) {
    this.waveform = waveform;
    this.spectrogram = spectrogram;
    this.picture = new OffscreenCanvas(WIDTH, ROWS);
    this.image = new ImageData(WIDTH, ROWS);
    this.reset(24000);
  }

  reset(rate) {
    this.rate = rate;
    this.hop = rate / 250;
    this.columns = []; // {peak, levels: Uint8Array(ROWS)}
    this.tail = new Float32Array(0);
    this.draw(0);
  }

  add(samples) {
    let rest = new Float32Array(this.tail.length + samples.length);
    rest.set(this.tail);
    rest.set(samples, this.tail.length);
    for (; rest.length >= this.hop; rest = rest.subarray(this.hop)) {
      const part = rest.subarray(0, this.hop);
      const peak = part.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
      this.columns.push({ peak, levels: levels(rest.subarray(0, Math.min(WINDOW, rest.length))) });
      if (this.columns.length === WIDTH) return this.halve(rest.subarray(this.hop));
    }
    this.tail = rest.slice();
  }

  halve(rest) {
    const merged = [];
    for (let i = 0; i < WIDTH; i += 2) {
      const [a, b] = this.columns.slice(i, i + 2);
      merged.push({ peak: Math.max(a.peak, b.peak), levels: a.levels.map((level, row) => Math.max(level, b.levels[row])) });
    }
    this.columns = merged;
    this.hop *= 2;
    this.tail = new Float32Array(0);
    this.add(rest);
  }

  // Paints all columns and, at `seconds`, where the listener is.
  draw(seconds) {
    const [red, green, blue] = getComputedStyle(this.waveform).color.match(/[\d.]+/g);
    const heard = (seconds * this.rate) / this.hop;
    const wave = this.waveform.getContext("2d"), { width, height } = this.waveform;
    wave.clearRect(0, 0, width, height);
    wave.fillStyle = `rgb(${red} ${green} ${blue})`;
    this.columns.forEach(({ peak }, x) => {
      wave.globalAlpha = x < heard ? 1 : 0.5;
      const tall = Math.max(1, peak * height);
      wave.fillRect(x, (height - tall) / 2, 1, tall);
    });
    wave.globalAlpha = 1;

    new Uint32Array(this.image.data.buffer).fill((blue << 16) | (green << 8) | red);
    this.columns.forEach(({ levels }, x) => levels.forEach((level, row) => {
      this.image.data[4 * ((ROWS - 1 - row) * WIDTH + x) + 3] = level; // how opaque the colour is
    }));
    this.picture.getContext("2d").putImageData(this.image, 0, 0);
    const spectrum = this.spectrogram.getContext("2d");
    spectrum.clearRect(0, 0, this.spectrogram.width, this.spectrogram.height);
    spectrum.drawImage(this.picture, 0, 0, this.spectrogram.width, this.spectrogram.height);
    if (heard < this.columns.length) spectrum.fillRect(heard, 0, 1, this.spectrogram.height);
  }
}

// Loudness of ROWS frequencies up to half the rate, low ones finer, 0 to 255.
function levels(samples) {
  const real = new Float32Array(WINDOW), imaginary = new Float32Array(WINDOW);
  samples.forEach((sample, i) => { real[i] = sample * (0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW)); });
  transform(real, imaginary);
  return Uint8Array.from({ length: ROWS }, (_, row) => {
    const edge = (at) => Math.floor((WINDOW / 2) * (0.3 * at + 0.7 * at * at));
    const from = edge(row / ROWS), to = Math.max(from + 1, edge((row + 1) / ROWS));
    let power = 0;
    for (let bin = from; bin < to; bin++) power = Math.max(power, real[bin] ** 2 + imaginary[bin] ** 2);
    const decibels = 10 * Math.log10(power / (WINDOW / 4) ** 2 + 1e-12);
    return Math.max(0, Math.min(255, 255 * (1 - decibels / QUIET)));
  });
}

// The fast Fourier transform, in place.
function transform(real, imaginary) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [real[i], real[j]] = [real[j], real[i]];
  }
  for (let length = 2; length <= size; length *= 2) {
    for (let start = 0; start < size; start += length) {
      for (let k = 0; k < length / 2; k++) {
        const angle = (-2 * Math.PI * k) / length, cos = Math.cos(angle), sin = Math.sin(angle);
        const a = start + k, b = a + length / 2;
        const re = real[b] * cos - imaginary[b] * sin, im = real[b] * sin + imaginary[b] * cos;
        real[b] = real[a] - re; imaginary[b] = imaginary[a] - im;
        real[a] += re; imaginary[a] += im;
      }
    }
  }
}
