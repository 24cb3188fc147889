// The same request for other programs. A recording is read from its file, the key from the environment.

const KEY = "QWEN3_TTS_API_KEY";
const PLACE = "\u0000"; // stands for the recording in JSON

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const subtype = (url) => url.slice(0, url.indexOf(","));

export function curl(base, wanted, file, key) {
  const body = { ...wanted, response_format: "wav" };
  const head = `curl -f ${base}/audio/speech${key ? ` -H "Authorization: Bearer $${KEY}"` : ""} -H 'Content-Type: application/json'`;
  if (!body.ref_audio) return `${head} -d ${quoted(JSON.stringify(body))} -o speech.wav`;
  const [before, after] = JSON.stringify({ ...body, ref_audio: PLACE }).split("\\u0000");
  const parts = `printf %s ${quoted(`${before}${subtype(wanted.ref_audio)},`)}; base64 -w0 ${quoted(file)}; printf %s ${quoted(after)}`;
  return `{ ${parts}; } |\n  ${head} -d @- -o speech.wav`;
}

export function python(base, wanted, file, key) {
  const { model, input, voice, instructions, ref_audio: recording, ...rest } = wanted;
  const text = JSON.stringify;
  const extra = Object.entries(rest).map(([name, value]) => `${text(name)}: ${text(value)}`);
  if (recording) extra.push(`"ref_audio": ${text(`${subtype(recording)},`)} + recording`);
  return [
    ...(recording ? ["import base64"] : []),
    ...(key ? ["import os"] : []),
    ...(recording || key ? [""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${text(base)}, api_key=${key ? `os.environ["${KEY}"]` : '"none"'})`,
    ...(recording ? [`with open(${text(file)}, "rb") as file:`, "    recording = base64.b64encode(file.read()).decode()"] : []),
    "with client.audio.speech.with_streaming_response.create(",
    `    model=${text(model)},`,
    `    voice=${text(voice ?? "none")},`,
    `    input=${text(input)},`,
    ...(instructions ? [`    instructions=${text(instructions)},`] : []),
    '    response_format="wav",',
    ...(extra.length ? [`    extra_body={${extra.join(", ")}},`] : []),
    ") as speech:",
    '    speech.stream_to_file("speech.wav")',
    "",
  ].join("\n");
}
