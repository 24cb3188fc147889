"""The weights of a graph, stored by a policy: 16 bits everywhere, then NNCF's compression if the policy asks."""

import logging
import time
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
from openvino import opset13 as ops

from pipeline.graphs import teacher_forcing
from pipeline.graphs.surgery import as_f32, readers, replace
from pipeline.graphs.teacher_forcing import Arrays
from pipeline.stage import PipelineError, one_line
from qwen3_tts_ov.memory import peak_bytes

# Constants with fewer elements (norms, biases, rotary frequencies, scales) cost nothing and stay in 32 bits.
_SMALL = 4096


def compress(source: Path, target: Path, policy: dict[str, Any], spoken: Path) -> dict[str, float]:
    """Write the graph `source` (.xml) to `target` with its weights stored by `policy`.

    `policy` has `mode`, f16 or a name of nncf.CompressWeightsMode, and other arguments of nncf.compress_weights. With
    `calibrated`, NNCF is given the graph's inputs for the calibration texts, which `rollout` recorded in the folder
    `spoken`. Returns the seconds that it took and the peak resident memory in bytes. Raises PipelineError for a policy
    that NNCF refuses.
    """
    start = time.perf_counter()
    model = ov.Core().read_model(source)
    to_f16(model, except_bf16_matrices=True)
    if policy != {"mode": "f16"}:
        model = compress_by_nncf(model, source.stem, dict(policy), spoken)
    to_f16(model)
    ov.save_model(model, target, compress_to_fp16=False)
    return {"seconds": round(time.perf_counter() - start, 1), "peak_bytes": peak_bytes()}


def compress_by_nncf(model: ov.Model, name: str, policy: dict[str, Any], spoken: Path) -> ov.Model:
    """The component `name` with its weights in NNCF's form. Raises PipelineError for a policy that NNCF refuses."""
    nncf.set_log_level(logging.WARNING)
    kinds = {
        "mode": nncf.CompressWeightsMode,
        "backup_mode": nncf.BackupMode,
        "sensitivity_metric": nncf.SensitivityMetric,
        "ignored_scope": lambda scope: nncf.IgnoredScope(**scope),
        "group_size_fallback_mode": nncf.GroupSizeFallbackMode,
        "advanced_parameters": lambda chosen: nncf.AdvancedCompressionParameters(**typed(chosen)),
    }

    def typed(arguments: dict[str, Any]) -> dict[str, Any]:
        return {key: kinds[key](value) if key in kinds else value for key, value in arguments.items()}

    refusals = (nncf.ParameterNotSupportedError, nncf.InvalidGroupSizeError, nncf.ValidationError)
    try:
        calls = calibration_calls(model, name, spoken) if policy.pop("calibrated", False) else None
        return nncf.compress_weights(model, dataset=calls and nncf.Dataset(calls), **typed(policy))
    except (TypeError, ValueError, *refusals) as error:
        known = ", ".join(mode.value for mode in nncf.CompressWeightsMode)
        raise PipelineError(
            f"{name}: NNCF cannot store weights by {policy}: {one_line(error)}; "
            f"the modes are f16, without arguments, {known}"
        ) from None


def calibration_calls(model: ov.Model, name: str, spoken: Path) -> list[Arrays]:
    """A component's inputs for the calibration texts. Raises ValueError for a component that cannot be calibrated."""
    texts = teacher_forcing.read(spoken, "calibration")
    if name == "talker":
        return [teacher_forcing.talker_call(text["inputs"]) for text in texts]
    if name == "code_predictor":
        frames = [frame for text in texts for frame in zip(text["hidden"], text["codes"], strict=True)]
        return [
            teacher_forcing.frame_call(hidden[None], codes[:1], teacher_forcing.forced_noise(model, codes))
            for hidden, codes in frames
        ]
    raise ValueError(f"only talker and code_predictor can be calibrated, not {name}")


def to_f16(model: ov.Model, except_bf16_matrices: bool = False) -> None:
    """Store weights in f16 and small constants in f32; no bf16 stays, which not every device supports.

    This model's bfloat16 weights lose next to nothing: f16 has more digits, and enough range for them.
    `except_bf16_matrices` leaves those that are cast before use. NNCF compresses them from bf16 with the same result,
    and a 1.7B talker then needs 4.6 GB instead of 7.4. Tables are cast after use; of those NNCF knows only f16.
    """
    for node in model.get_ordered_ops():
        kind = node.get_element_type() if node.get_type_name() == "Constant" else None
        if kind not in (ov.Type.bf16, ov.Type.f32):
            continue
        if (
            except_bf16_matrices
            and kind == ov.Type.bf16
            and {read.get_type_name() for read in readers(node)} == {"Convert"}
        ):
            continue
        values = as_f32(node)
        if values.size < _SMALL:
            if kind == ov.Type.bf16:
                exact = ops.constant(values)
                for cast in readers(node):
                    assert cast.get_type_name() == "Convert"
                    replace(cast, exact)
        else:
            stored = ops.constant(values.astype(np.float16))
            stored.set_friendly_name(node.get_friendly_name())
            if kind == ov.Type.f32:
                replace(node, ops.convert(stored, ov.Type.f32))
            else:
                replace(node, stored)  # the cast that follows takes f16 as well
    model.validate_nodes_and_infer_types()
