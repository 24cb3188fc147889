"""Runs optimum-intel's own Qwen3-TTS runtime on a bundle, with a Python that has it.

    python optimum_intel.py BUNDLE REQUESTS PROPERTIES CODES

REQUESTS is a JSON file with a list of pairs, the arguments of `preprocess_input` and those of `generate`; PROPERTIES is
JSON with compile properties that take precedence over its own. The codes of the n-th request are written to the file
CODES as array n.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from optimum.intel.openvino import modeling_text2speech as runtime


def main(bundle: str, requests: str, properties: str, codes: str) -> None:
    program, chosen = runtime._OVModelForQwen3TTS, json.loads(properties)
    compiled = program._compile_ov_component

    def compiled_as_chosen(self: Any, name: str, label: str, own: dict[str, Any] | None = None) -> Any:
        return compiled(self, name, label, {**(own or {}), **chosen})

    program._compile_ov_component = compiled_as_chosen
    model = runtime.OVModelForTextToSpeechSeq2Seq.from_pretrained(bundle)
    generate, spoken = model.model.generate, []

    def recorded(*arguments: Any, **more: Any) -> Any:
        result = generate(*arguments, **more)
        spoken.append(result[0][0].numpy())
        return result

    model.model.generate = recorded
    for asked, options in json.loads(Path(requests).read_text(encoding="utf-8")):
        waveform = model.generate(**model.preprocess_input(**asked), **options)
        assert np.isfinite(waveform.numpy()).all()
    np.savez(codes, **{str(number): found for number, found in enumerate(spoken)})


if __name__ == "__main__":
    main(*sys.argv[1:])
