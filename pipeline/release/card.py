"""The model card of a release: front matter for the Hub and a text for people, every figure from the manifest."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from omegaconf import DictConfig

from pipeline.judging.gates import Miss, measure

TEMPLATE = Path(__file__).with_name("card.md.jinja")
# The Hub wants ISO 639-1; the checkpoints name languages in words.
LANGUAGES = {
    "chinese": "zh", "english": "en", "french": "fr", "german": "de", "italian": "it",
    "japanese": "ja", "korean": "ko", "portuguese": "pt", "russian": "ru", "spanish": "es",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What a kind of checkpoint speaks with, OpenArc's word for it, and what names a voice to each program.

    `{voice}` stands for a name, and `recording`, for openvino.genai, for a tensor.
    """

    voices: str
    openarc_type: str
    say: str
    openarc: str
    optimum: str
    genai: str


KINDS = {
    "base": Kind(
        "voices cloned from a recording",
        "voice_clone",
        say='--voice voice.wav --ref-text "What it says."',
        openarc='"ref_audio_b64": b64encode(Path("voice.wav").read_bytes()).decode(), "ref_text": "What it says."',
        optimum='ref_audio="voice.wav", ref_text="What it says."',
        genai='voice_clone_ref_audio=recording, voice_clone_ref_text="What it says."',
    ),
    "custom_voice": Kind(
        "voices by name",
        "custom_voice",
        say="--voice {voice}",
        openarc='"speaker": "{voice}"',
        optimum='speaker="{voice}"',
        genai='speaker="{voice}"',
    ),
    "voice_design": Kind(
        "voices designed in words",
        "voice_design",
        say='--instruct "A calm, low voice."',
        openarc='"voice_description": "A calm, low voice."',
        optimum='instruct="A calm, low voice."',
        genai='instruct="A calm, low voice."',
    ),
}
PROGRAMS = ("say", "openarc", "optimum", "genai")
HELD_OUT = "held_out_"  # before a measure against the graph before compression; without it, against PyTorch


def card(manifest: dict[str, Any], samples: dict[str, str], publish: DictConfig) -> str:
    """The README.md of a release: `samples` has what each device spoke, as paths in the release."""
    kind = KINDS[manifest["kind"]]
    voice = next(iter(manifest["speakers"]), "")
    text = ModelCard.from_template(
        front_matter(manifest),
        template_path=str(TEMPLATE),
        manifest=manifest,
        source=manifest["source"],
        from_hub="/" in manifest["source"]["repo"],
        kind=kind,
        named={program: getattr(kind, program).format(voice=voice) for program in PROGRAMS},
        revision=publish.tag or publish.branch,
        layouts=publish.layouts,
        samples=samples,
        here=f"https://huggingface.co/{publish.layouts[manifest['layout']]}",
        hosted=publish.target == "hub",
        quality=quality_rows(manifest),
        missed=[Miss(**entry) for entry in manifest["missed"]],
        megabytes=megabytes,
        figure=figure,
        stored=stored,
    )
    return f"{text}\n"


def front_matter(manifest: dict[str, Any]) -> ModelCardData:
    """What the Hub reads of a card: where the model comes from, what it does, and how well."""
    source = manifest["source"]
    base = {"base_model": source["repo"], "base_model_relation": "quantized"} if "/" in source["repo"] else {}
    measured = manifest["precisions"][manifest["precision"]]["quality"]
    results = [
        EvalResult(
            task_type="text-to-speech",
            task_name="Text to speech",
            dataset_type="parity",
            dataset_name="seeded inputs, against the PyTorch networks in float32",
            metric_type=measure,
            metric_name=f"{component} {measure}",
            metric_value=value,
        )
        for component, measures in measured.items()
        for measure, value in measures.items()
    ]
    return ModelCardData(
        model_name=f"{manifest['variant']} {manifest['precision']} {manifest['layout']}",
        language=sorted(LANGUAGES[name] for name in manifest["languages"] if name in LANGUAGES),
        license=source["licence"].lower(),
        library_name="openvino",
        pipeline_tag="text-to-speech",
        tags=["openvino", "qwen3-tts", manifest["layout"], manifest["precision"]],
        eval_results=results,
        **base,
    )


def quality_rows(manifest: dict[str, Any]) -> list[tuple[str, str, str, list[str]]]:
    """For each component and measure, whether higher or lower is better, and the figure of each precision."""
    scores = {name: other["quality"] for name, other in manifest["precisions"].items()}
    return [
        (
            component,
            name,
            measure(name.removeprefix(HELD_OUT)).better,
            [figure(found.get(component, {}).get(name)) for found in scores.values()],
        )
        for component, measures in scores[manifest["precision"]].items()
        for name in measures
    ]


def figure(value: float | None) -> str:
    """A figure for people: three significant digits, or all digits before the point where there are more."""
    if value is None:
        return ""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, digits)}f}"


def megabytes(size: int) -> str:
    """Bytes in MB."""
    return f"{figure(size / 1e6)} MB"


def stored(compression: dict[str, Any]) -> str:
    """How weights are stored: the mode and its other parameters."""
    others = (f"{key} {value}" for key, value in compression.items() if key != "mode")
    return ", ".join([compression["mode"], *others])
