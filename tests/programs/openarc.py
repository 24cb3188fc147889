"""Runs OpenArc's own engine on a bundle, with OpenArc's Python, from the root of its checkout.

    python openarc.py BUNDLE KIND REQUESTS PROPERTIES CODES

REQUESTS is a JSON file with a list of its engine's requests, PROPERTIES JSON with compile properties; the codes of the
n-th request are written to the file CODES as array n.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, ".")
from src.engine.openvino.qwen3_tts.qwen3_tts import OVQwen3TTS
from src.server.schemas.modeling import contract_qwen3tts as contract
from src.server.schemas.registration import ModelLoadConfig

REQUESTS = {
    "custom_voice": contract.OV_Qwen3TTSCustomVoice,
    "voice_design": contract.OV_Qwen3TTSVoiceDesign,
    "voice_clone": contract.OV_Qwen3TTSVoiceClone,
}


class Recorded(OVQwen3TTS):
    codes: list[list[int]]

    def _run_loop(self, *arguments: Any) -> list[list[int]]:
        self.codes = super()._run_loop(*arguments)
        return self.codes


def main(bundle: str, kind: str, requests: str, properties: str, codes: str) -> None:
    config = ModelLoadConfig(
        model_path=bundle,
        model_name="qwen3-tts",
        model_type=f"qwen3_tts_{kind}",
        engine="openvino",
        device="CPU",
        runtime_config=json.loads(properties),
    )
    engine = Recorded(config)
    engine.load_model(config)
    found = {}
    for number, request in enumerate(json.loads(Path(requests).read_text(encoding="utf-8"))):
        waveform, rate = asyncio.run(engine.generate(REQUESTS[kind](**request)))
        assert rate == 24_000
        assert np.isfinite(waveform).all()
        found[str(number)] = np.array(engine.codes)
    np.savez(codes, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
