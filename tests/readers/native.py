"""What other programs are asked to speak here, and what the native runtime speaks when it is asked the same."""

from dataclasses import replace

import numpy as np

from pipeline.stage import ROOT
from qwen3_tts_ov import Bundle, Model, Synthesizer, VoicePrompt, audio, prompt
from qwen3_tts_ov.generation import Request, chunk_sizes, speak
from qwen3_tts_ov.sampling import Sampling
from tests.readers.host import Asked, Codes, Floats

FRAMES = 48
TEXT = "Good morning! The next train leaves from platform nine at 10:45."
GERMAN = "Guten Morgen, wann fährt der nächste Zug?"
SAID = "Had he married a more amiable woman, he might have been made still more respectable than he was."
# Whole frames: optimum-intel fills a last one with zeros.
RECORDING = audio.load(ROOT / "tests" / "data" / "speech-24khz.flac", 24_000)[: 30 * 1920]
ASKED = {
    "custom_voice": {
        "speaker": Asked(TEXT, "english", speaker="ryan"),
        "dialect, text beside": Asked("图书馆的旧地图上画着十七座桥。", speaker="eric", text_first=False),
    },
    "voice_design": {
        "design": Asked(TEXT, "english", instruct="A calm, low voice."),
        "text beside": Asked(GERMAN, "german", instruct="Bright and fast.", text_first=False),
    },
    "base": {
        "x-vector": Asked(TEXT, "english", recording=RECORDING),
        "text beside": Asked(GERMAN, recording=RECORDING, text_first=False),
        "in context": Asked(TEXT, "english", recording=RECORDING, reference_text=SAID),
        "in context, text beside": Asked(GERMAN, recording=RECORDING, reference_text=SAID, text_first=False),
    },
}


def asked_of(bundle: Bundle) -> dict[str, Asked]:
    """What a bundle's kind is asked, by voices that it has."""
    return {
        name: asked if asked.speaker in (None, *bundle.speakers) else replace(asked, speaker=bundle.speakers[0])
        for name, asked in ASKED[bundle.manifest["kind"]].items()
    }


def native(synthesizer: Synthesizer, asked: Asked, by_openarc: bool = False) -> tuple[Codes, Floats]:
    """Greedy codes [frames, groups] of at most FRAMES frames, and the waveform."""
    engine = synthesizer.engine
    voice = None
    if asked.recording is not None:  # without the silence that voice_prompt() appends
        voice = VoicePrompt(engine.x_vector(asked.recording))
        if asked.reference_text is not None:
            voice = replace(voice, codes=engine.encode(asked.recording), text=asked.reference_text)
    greedy = Sampling(do_sample=False, repetition_penalty=1.05)
    pieces = [(planned(engine.model, asked, voice, by_openarc), FRAMES, 0.0)]
    stream = speak(engine, Request(pieces, voice, 0, greedy, greedy, None, engine.model.positions), chunk_sizes(16))
    chunks = []
    while True:
        try:
            chunks.append(next(stream))
        except StopIteration as stop:
            return stop.value.codes, np.concatenate(chunks)


def planned(model: Model, asked: Asked, voice: VoicePrompt | None, by_openarc: bool) -> prompt.Prompt:
    """The native prompt; in context, for OpenArc, with the row that it appends to the official one."""
    config, tokenize, language = model.config, model.tokenize, asked.language or "auto"
    if voice is not None and voice.codes is not None and asked.reference_text is not None:
        text_first, frames = asked.text_first or by_openarc, len(voice.codes)
        plan = prompt.clone_icl(config, tokenize, asked.text, asked.reference_text, frames, language, text_first)
        if by_openarc:
            text_id, codec_id = config["tts_pad_token_id"], config["talker_config"]["codec_bos_id"]
            plan = replace(plan, text_ids=(*plan.text_ids, text_id), codec_ids=(*plan.codec_ids, codec_id))
        return plan
    if voice is not None:
        return prompt.clone_x_vector(config, tokenize, asked.text, language, asked.text_first)
    if asked.speaker is None:
        return prompt.voice_design(config, tokenize, asked.text, asked.instruct, language, asked.text_first)
    return prompt.custom_voice(config, tokenize, asked.text, asked.speaker, language, asked.instruct, asked.text_first)
