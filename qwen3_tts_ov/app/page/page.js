import { Drawing } from "./drawing.js";
import { Player, wav } from "./player.js";
import { curl, python } from "./snippets.js";

const $ = (id) => document.getElementById(id);
const LONGEST_RECORDING = 30_000; // ms
const RATE = 24000; // of every Qwen3-TTS

let key = ""; // in memory alone
let models = [], voices = [], canChange = false;
let recorded = null; // the recording to clone, {url, name}
let running = null; // the AbortController of the speech in progress
let player = null;
const drawing = new Drawing($("waveform"), $("spectrogram"));

// ---- the server

async function ask(path, options = {}) {
  const headers = { ...(options.body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name !== "AbortError") waitForServer();
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  }
  if (answer.status === 401) throw new Error(askForKey());
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw new Error(body?.error?.message ?? `The server answers ${answer.status}.`);
  }
  return answer;
}

// Shows the field for the key; returns the reason.
function askForKey() {
  const reason = key ? "This key is wrong." : "A key is needed.";
  key = "";
  $("key-form").hidden = false;
  $("key").focus();
  return reason;
}

let gone = false;
async function waitForServer() {
  if (gone) return;
  gone = true;
  tell("server", "The server cannot be reached; this page tries again every second.", true);
  do {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    gone = !(await fetch("health").then((answer) => answer.ok, () => false));
  } while (gone);
  await load();
}

async function load() {
  try {
    models = (await (await ask("v1/models")).json()).data;
    ({ voices, can_change: canChange } = await (await ask("v1/audio/voices")).json());
  } catch (error) {
    return tell("server", error.message, true);
  }
  $("key-form").hidden = true;
  tell("server", models.length > 1 ? `${models.length} models are served.` : `${models[0].id} is served.`);
  fill($("model"), models.map((model) => [model.id, model.id]));
  $("model-field").hidden = models.length < 2;
  choose();
}

// ---- the form

const model = () => models.find(({ id }) => id === $("model").value) ?? models[0];

// Shows the fields that fit the chosen model.
function choose() {
  const { id, kind, languages, instructions, default_voice: standard } = model();
  const own = voices.filter((voice) => voice.models.includes(id)).map((voice) => [voice.id, voice.id]);
  const base = kind === "base";
  fill($("voice"), base ? [...own, ["", "the recording below"]] : own, standard);
  fill($("language"), languages.map((language) => [language, language]));
  $("voice-field").hidden = kind === "voice_design";
  $("style-field").hidden = !instructions;
  $("instructions").required = kind === "voice_design";
  $("style-label").textContent = kind === "voice_design" ? "The voice in words" : "Style";
  $("clone").hidden = !base;
  $("saving").hidden = !canChange;
  show();
}

function fill(select, options, standard) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  select.value = options.some(([value]) => value === before) ? before : (standard ?? options[0]?.[0] ?? "");
}

function request() {
  const { id, kind, instructions } = model();
  const wanted = { model: id, input: $("input").value };
  if (kind === "custom_voice" || (kind === "base" && $("voice").value)) wanted.voice = $("voice").value;
  if (kind === "base" && !$("voice").value) {
    wanted.ref_audio = recorded?.url;
    if ($("ref-text").value.trim()) wanted.ref_text = $("ref-text").value;
  }
  if (instructions && $("instructions").value.trim()) wanted.instructions = $("instructions").value;
  if ($("language").value !== "auto") wanted.language = $("language").value;
  if ($("seed").value) wanted.seed = Number($("seed").value);
  return wanted;
}

// Shows the request for other programs.
function show() {
  if (!models.length) return;
  const base = new URL("v1", location.href).href, wanted = request();
  $("curl").textContent = curl(base, wanted, recorded?.name, key);
  $("python").textContent = python(base, wanted, recorded?.name, key);
}

function tell(id, text, bad = false) {
  $(id).textContent = text;
  $(id).classList.toggle("bad", bad);
}

// ---- speaking

async function speak() {
  const wanted = request();
  if (model().kind === "base" && !wanted.voice && !wanted.ref_audio) return tell("status", "Choose a voice, or record one.", true);
  stop();
  const run = (running = new AbortController());
  player ??= new Player(RATE);
  player.reset();
  drawing.reset(RATE);
  for (const id of ["first-audio", "factor", "length", "reason", "used-seed", "dry"]) $(id).textContent = "–";
  $("again").hidden = $("download").hidden = true;
  $("again").pause();
  $("stop").disabled = false;
  tell("status", "Waiting for the first audio …");
  await player.context.resume();
  const chunks = [];
  try {
    const ended = await receive(wanted, run.signal, chunks);
    $("factor").textContent = ended.real_time_factor.toFixed(2);
    $("reason").textContent = ended.stop_reason === "eos" ? "by itself" : "cut at its limit";
    $("used-seed").textContent = ended.seed;
    offer(chunks);
    await player.finish();
    if (running === run) tell("status", "Said.");
  } catch (error) {
    if (running !== run) return;
    player.stop();
    const stopped = error.name === "AbortError";
    $("reason").textContent = stopped ? "stopped by you" : "by an error";
    tell("status", stopped ? "Stopped." : error.message, !stopped);
    if (chunks.length) offer(chunks);
  }
  if (running === run) {
    running = null;
    $("stop").disabled = true;
  }
}

// Plays and draws what arrives, and keeps it in `chunks`; returns the event that ends it.
async function receive(wanted, signal, chunks) {
  const started = performance.now();
  const body = JSON.stringify({ ...wanted, response_format: "pcm", stream_format: "sse" });
  const answer = await ask("v1/audio/speech", { method: "POST", body, signal });
  for await (const event of events(answer.body)) {
    if (event.type === "error") throw new Error(event.error.message);
    if (event.type === "speech.audio.done") return event;
    if (!chunks.length) {
      $("first-audio").textContent = `${((performance.now() - started) / 1000).toFixed(2)} s`;
      tell("status", "Speaking …");
      requestAnimationFrame(animate);
    }
    const pcm = Int16Array.from(new Int16Array(Uint8Array.from(atob(event.audio), (letter) => letter.charCodeAt(0)).buffer));
    const samples = Float32Array.from(pcm, (sample) => sample / 32768);
    chunks.push(pcm);
    player.add(samples);
    drawing.add(samples);
    $("length").textContent = `${(chunks.reduce((sum, chunk) => sum + chunk.length, 0) / RATE).toFixed(1)} s`;
    $("dry").textContent = player.dry ? `${player.dry} times` : "never";
  }
  waitForServer();
  throw new Error("The speech broke off.");
}

// The events of a stream of server-sent events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true }; // the server is gone
    });
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part.replace(/^data: /, ""));
  }
}

function animate() {
  drawing.draw(player.position());
  if (running) requestAnimationFrame(animate);
}

function stop() {
  running?.abort();
  player?.stop();
}

// Offers the finished speech to be heard again and downloaded.
function offer(chunks) {
  if ($("download").href) URL.revokeObjectURL($("download").href);
  $("download").href = $("again").src = URL.createObjectURL(wav(chunks, RATE));
  $("again").hidden = $("download").hidden = false;
}

// ---- cloning

let recorder = null;
async function record() {
  if (recorder) return recorder.stop();
  if (!navigator.mediaDevices) return tell("recording", "Browsers record only from https or localhost; choose a file instead.", true);
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    return tell("recording", `The microphone cannot be used: ${error.message}`, true);
  }
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = ({ data }) => parts.push(data);
  recorder.onstop = () => {
    stream.getTracks().forEach((track) => track.stop());
    take(new File(parts, "recording.webm", { type: recorder.mimeType }));
    recorder = null;
    pressed(false);
  };
  recorder.start();
  pressed(true);
  tell("recording", "Recording; it ends by itself after 30 seconds.");
  setTimeout((which) => which === recorder && which.stop(), LONGEST_RECORDING, recorder);
}

function pressed(is) {
  $("record").setAttribute("aria-pressed", is);
  $("record").textContent = is ? "End the recording" : "Record";
}

// Takes a recording to clone.
function take(file) {
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    recorded = { url: reader.result, name: file.name };
    if ($("heard").src) URL.revokeObjectURL($("heard").src);
    $("heard").src = URL.createObjectURL(file);
    $("heard").hidden = false;
    $("voice").value = "";
    tell("recording", `${file.name} is ready to be cloned.`);
    show();
  };
  reader.readAsDataURL(file);
}

async function changeVoices(act) {
  try {
    const name = await act();
    await load();
    return name;
  } catch (error) {
    tell("recording", error.message, true);
    return null;
  }
}

async function save() {
  const name = $("name").value.trim();
  if (!recorded || !name) return tell("recording", recorded ? "Give the voice a name." : "Record something, or choose a file.", true);
  const wanted = { name, ref_audio: recorded.url, model: model().id };
  if ($("ref-text").value.trim()) wanted.ref_text = $("ref-text").value;
  tell("recording", "Saving …");
  if (!(await changeVoices(async () => (await ask("v1/audio/voices", { method: "POST", body: JSON.stringify(wanted) })).json()))) return;
  $("voice").value = name;
  show();
  tell("recording", `${name} is saved.`);
}

async function remove() {
  const name = $("voice").value;
  if (!name) return tell("recording", "Choose a saved voice first.", true);
  if (!confirm(`Delete the voice ${name}?`)) return;
  if (await changeVoices(() => ask(`v1/audio/voices/${encodeURIComponent(name)}`, { method: "DELETE" }))) tell("recording", `${name} is deleted.`);
}

// ---- what people do

$("speak-form").addEventListener("submit", (event) => { event.preventDefault(); speak(); });
$("speak-form").addEventListener("input", show);
$("key-form").addEventListener("submit", (event) => { event.preventDefault(); key = $("key").value; $("key").value = ""; load(); });
$("model").addEventListener("change", choose);
$("stop").addEventListener("click", stop);
$("record").addEventListener("click", record);
$("save").addEventListener("click", save);
$("delete").addEventListener("click", remove);
$("file").addEventListener("change", () => take($("file").files[0]));
for (const type of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(type, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", type === "dragover");
    if (type === "drop") take(event.dataTransfer.files[0]);
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("speak-form").requestSubmit();
});
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const code = $(button.dataset.copy);
    getSelection().selectAllChildren(code); // where the clipboard is not allowed, Ctrl+C does it
    await navigator.clipboard?.writeText(code.textContent).catch(() => {});
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawing.draw(player?.position() ?? 0));
load();
