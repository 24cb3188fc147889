"""bundle: assembles the compressed graphs, the tokenizer and the configuration under a manifest that describes them.

The same inputs give the same bytes and so the same bundle id: no time and no machine enters a hashed part.
"""

import hashlib
import json
import platform
import shutil
import subprocess
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openvino as ov
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer
from transformers import Qwen2Tokenizer

from pipeline.release.attestations import write_papers
from pipeline.release.layout import SPOKEN, Graph, graphs, place, read
from pipeline.stage import (
    ROOT,
    Paths,
    PipelineError,
    alone,
    fingerprint,
    list_files,
    main,
    one_line,
    output,
    paths,
    read_json,
    read_report,
)
from qwen3_tts_ov.bundle import Bundle
from qwen3_tts_ov.manifest import FORMAT, NATIVE, bundle_id

# What decides the content of a bundle; a change elsewhere, as in dvc.lock or to the list of cells in params.yaml,
# leaves the checkout clean.
SOURCES = ("conf", "model_src", "pipeline", "qwen3_tts_ov", "constraints.txt", "dvc.yaml", "pyproject.toml")
QUANTISED_TOGETHER = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
TOKENIZER_PROBES = (
    "<|im_start|>assistant\nHello, world!<|im_end|>\n<|im_start|>assistant\n",
    "  It's 12:30 -- naïve café, cafe\u0301, ﬁne\u200b.\r\n\n\tEnd  ",
    "你好，世界。こんにちは 안녕하세요 Привет שלום नमस्ते 🎙️👩‍🚀",
)


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/<precision>/bundle."""
    where = paths(cfg)
    reports = {each: evidence(each) for each in (paths(cfg, NATIVE), where)}  # one pair in the native layout
    held = graphs(cfg.layout, {each.compressed: found["compress"] for each, found in reports.items()})
    with output(where.bundle) as bundle:
        for name in cfg.layout.files:  # what a runtime reads of the checkpoint
            (bundle / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(where.checkpoint / name, bundle / name)
        write_tokenizer(where.checkpoint, bundle / "tokenizer.json")
        if cfg.layout.openvino_tokenizer:
            alone(convert_tokenizer, where.checkpoint, bundle)
        on_cpu = placement(cfg, held).get("CPU", {})
        for graph in held:
            place(graph, cfg.layout.name, bundle, on_cpu.get(graph.component, {}))
        manifest = describe(cfg, held, read_report(where.checkpoint), [*reports.values()], bundle)
        write_papers(bundle, manifest)
        if cfg.layout.name in SPOKEN:
            Bundle.load(bundle)  # as a user's runtime would
    print(f"{where.bundle}: {len(manifest['components'])} components, id {manifest['bundle_id'][:12]}")


def write_tokenizer(checkpoint: Path, path: Path) -> None:
    """Writes the checkpoint's vocabulary, merges and special tokens as one tokenizer.json.

    Raises PipelineError when the `tokenizers` library alone, as in the runtime, gives different ids.
    """
    config = read_json(checkpoint / "config.json")
    try:
        source = Qwen2Tokenizer.from_pretrained(str(checkpoint), local_files_only=True)
    except Exception as error:  # the library raises nothing narrower
        raise PipelineError(
            f"{checkpoint}: vocab.json, merges.txt and tokenizer_config.json make no tokenizer "
            f"({one_line(error)}); download the checkpoint again"
        ) from error
    source.backend_tokenizer.save(str(path), pretty=False)
    tokenizer = Tokenizer.from_file(str(path))
    for probe in TOKENIZER_PROBES:
        if tokenizer.encode(probe).ids != source(probe)["input_ids"]:
            raise PipelineError(
                f"{path.name} and {checkpoint}/vocab.json with merges.txt give different ids for {probe!r}"
            )
    for token, key in (("<|im_start|>", "im_start_token_id"), ("<|im_end|>", "im_end_token_id")):
        if tokenizer.token_to_id(token) != config[key]:
            raise PipelineError(
                f"{checkpoint}: {token} is {tokenizer.token_to_id(token)} in tokenizer_config.json and vocab.json "
                f"but {config[key]} as {key} in config.json"
            )


def convert_tokenizer(checkpoint: Path, bundle: Path) -> None:
    """Writes tokenizer and detokenizer as graphs of openvino_tokenizers.

    Raises PipelineError when their ids, or the text decoded from them, differ from the checkpoint's tokenizer.
    """
    import openvino_tokenizers  # registers its operations with OpenVINO

    source = Qwen2Tokenizer.from_pretrained(str(checkpoint), local_files_only=True)
    for name, model in zip(
        ("openvino_tokenizer", "openvino_detokenizer"),
        openvino_tokenizers.convert_tokenizer(source, with_detokenizer=True),
        strict=True,
    ):
        ov.save_model(model, bundle / f"{name}.xml", compress_to_fp16=False)
    core = ov.Core()
    encode = core.compile_model(bundle / "openvino_tokenizer.xml", "CPU")
    decode = core.compile_model(bundle / "openvino_detokenizer.xml", "CPU")
    for probe in TOKENIZER_PROBES:
        ids = encode([probe])["input_ids"]
        expected = source(probe)["input_ids"]
        if ids[0].tolist() != expected or decode(ids)[0][0] != source.decode(expected, skip_special_tokens=True):
            raise PipelineError(
                f"openvino_tokenizer.xml: it reads {probe!r} differently from the checkpoint's tokenizer"
            )


def describe(
    cfg: DictConfig, held: list[Graph], source: dict[str, Any], reports: list[dict[str, Any]], bundle: Path
) -> dict[str, Any]:
    """The manifest of the files in `bundle`.

    `source` is the checkpoint's report, `reports` are those of the native stages and of the layout's own.
    """
    config = read_json(bundle / "config.json")
    speech = read_json(bundle / "speech_tokenizer/config.json")
    talker = config["talker_config"]
    manifest = {
        "format": FORMAT,
        "variant": cfg.variant.name,
        "kind": config["tts_model_type"],
        "precision": cfg.precision.name,
        "layout": cfg.layout.name,
        "source": {
            "repo": source["source"],
            "revision": source["revision"],
            "licence": cfg.variant.get("licence"),
            "files": source["files"],
        },
        # What other runtimes add, such as their tokenizer's graphs, has been tried with this release alone.
        "minimum_openvino": (
            cfg.minimum_openvino if cfg.layout.name == NATIVE else ".".join(version("openvino").split(".")[:2])
        ),
        "sample_rate": speech["output_sample_rate"],
        "samples_per_frame": speech["decode_upsample_rate"],
        "components": {graph.component: component(bundle, graph) for graph in held},
        "files": {name: fingerprint(bundle / name) for name in list_files(bundle)},
        "languages": sorted(talker["codec_language_id"]),
        "speakers": sorted(talker.get("spk_id") or {}),
        "dialects": {name: dialect for name, dialect in (talker.get("spk_is_dialect") or {}).items() if dialect},
        "generation": read_json(bundle / "generation_config.json"),
        "placement": placement(cfg, held),
        "evidence": reports[0] | ({cfg.layout.name: reports[1]} if reports[1:] else {}),
        "missed": [entry for found in reports for entry in found["compress"]["missed"]],
        "provenance": provenance(cfg),
    }
    if voice := cfg.variant.get("voice"):
        if voice not in manifest["speakers"]:
            known = ", ".join(manifest["speakers"]) or "none"
            raise PipelineError(f"variant.voice: the checkpoint has no voice {voice!r}; it has: {known}")
        manifest["default_voice"] = voice
    if "caveat" in cfg.layout:
        manifest["caveat"] = cfg.layout.caveat
    return manifest | {"bundle_id": bundle_id(manifest)}


def component(bundle: Path, graph: Graph) -> dict[str, Any]:
    """The policy that `compress` followed, and ports, states, operation sets and weight dtypes as in the IR."""
    model = read(bundle / f"{graph.file}.xml")
    operations, states = model.get_ops(), [variable.info for variable in model.get_variables()]
    weights: Counter[str] = Counter()
    for operation in operations:
        if operation.get_type_name() == "Constant":
            weights[operation.get_element_type().get_type_name()] += operation.get_byte_size()
    return {
        "xml": f"{graph.file}.xml",
        "bin": f"{graph.file}.bin",
        "inputs": {port.any_name: form(port.get_partial_shape(), port.get_element_type()) for port in model.inputs},
        "outputs": {port.any_name: form(port.get_partial_shape(), port.get_element_type()) for port in model.outputs},
        "states": {state.variable_id: form(state.data_shape, state.data_type) for state in states},
        "opsets": sorted({operation.get_type_info().version_id for operation in operations}),
        "compression": graph.weights,
        "precision": dict(weights),
        **({"sizes": graph.sizes} if graph.sizes else {}),
    }


def form(shape: ov.PartialShape, dtype: ov.Type) -> dict[str, Any]:
    """Shape and element type of a port or state; -1 for a dimension that the caller chooses, or that grows."""
    lengths = [axis.get_length() if axis.is_static else -1 for axis in shape]
    return {"shape": lengths, "dtype": dtype.get_type_name()}


def placement(cfg: DictConfig, held: list[Graph]) -> dict[str, dict[str, Any]]:
    """The recommended compile properties of every component on every device that conf/device knows.

    In place of properties, the name of another device: the component is better compiled for that one.
    """
    devices: Any = OmegaConf.to_container(cfg.device.placement, resolve=True)
    return {
        device: {
            graph.component: within_groups(
                chosen.get(graph.policy, chosen.get("default", {})), graph.weights.get("group_size")
            )
            for graph in held
        }
        for device, chosen in devices.items()
    }


def within_groups(properties: Any, weights: int | None) -> Any:
    """Compile properties whose groups of activations are no larger than `weights`, the groups that share a scale.

    With larger groups OpenVINO's CPU plugin does not quantise activations at all (0.6B code predictor in int4: 30.8 ms
    instead of 18.1).
    """
    group = 0 if isinstance(properties, str) else properties.get(QUANTISED_TOGETHER, 0)
    return properties | {QUANTISED_TOGETHER: weights} if weights and 0 < weights < group else properties


def evidence(where: Paths) -> dict[str, Any]:
    """What the stages before this one measured. Raises PipelineError where one has not run."""
    stages = {"build": where.model, "export": where.ir, "rollout": where.rollout, "compress": where.compressed}
    return {stage: read_report(directory) for stage, directory in stages.items()}


def provenance(cfg: DictConfig) -> dict[str, Any]:
    """Which code, configuration and tools made the bundle."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    config = {key: resolved[key] for key in ("variant", "precision", "layout", "device", "parity", "seed")}
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    packages = ("torch", "openvino", "openvino-tokenizers", "nncf", "transformers", "tokenizers", "numpy")
    return {
        "git": git_state(),
        "config": config,
        "config_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def git_state() -> dict[str, Any]:
    """Commit of this checkout and whether what decides a bundle differs from it; no commit outside of git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", *SOURCES))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": True}


if __name__ == "__main__":
    main(run)
