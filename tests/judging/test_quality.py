"""The loss of compression is measured by teacher forcing on held-out texts, reported, and checked against bounds."""

import filecmp
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from model_src.checkpoint import Checkpoint
from pipeline.compress import by_component
from pipeline.graphs import teacher_forcing
from pipeline.graphs.compression import compress
from pipeline.judging.gates import missed
from pipeline.judging.quality import judge
from pipeline.rollout import choose_texts
from pipeline.stage import PipelineError, alone, configuration
from tests.conftest import SPOKEN
from tests.exported import constants, request

VARIANT = "tiny-base"
# The measures of each network.
MEASURES = {
    "talker": {"top1", "top5", "kl"},
    "code_predictor": {"early_groups", "late_groups"},
    "speech_decoder": {"waveform_snr_db", "log_mel_db"},
    "speech_encoder": {"code_agreement"},
    "speaker_encoder": {"cosine"},
}
ADJUST = {"advanced_parameters": {"group_size_fallback_mode": "adjust"}}
UNCALIBRATED = {"calibrated": False, "awq": False, "scale_estimation": False}


def section(precision: str, name: str) -> dict[str, Any]:
    """A section of conf/precision by component."""
    return by_component(configuration([f"precision={precision}"]).precision, name)


def report(artifact, precision: str) -> dict[str, Any]:
    return json.loads((artifact("compress", VARIANT, precision) / "report.json").read_text())


# ---- the rollouts ----------------------------------------------------------------------------------------------------


def test_the_two_sets_of_texts_are_disjoint_and_spoken_in_each_language(artifact):
    folder = artifact("rollout", VARIANT)
    spoken = json.loads((folder / "report.json").read_text())["texts"]
    for split in spoken.values():
        assert [language for language, _ in split] == list(SPOKEN), "one text of each, as they are enough"
    assert not {text for _, text in spoken["calibration"]} & {text for _, text in spoken["held_out"]}
    for split in ("calibration", "held_out"):
        assert len(teacher_forcing.read(folder, split)) == len(spoken[split]) == 3


def test_a_checkpoint_of_few_languages_speaks_more_texts_of_each():
    texts = {"english": ["a", "b", "c"], "german": ["d"], "french": ["e"]}
    assert choose_texts(texts, ["english", "german"], 2) == [("english", "a"), ("german", "d")]
    assert choose_texts(texts, ["english", "german"], 3) == [("english", "a"), ("german", "d"), ("english", "b")]
    assert len(choose_texts(texts, ["english"], 9)) == 3, "all that it has"


def test_a_talker_fed_the_recorded_inputs_gives_the_recorded_outputs(artifact):
    talker = request(artifact("export", VARIANT) / "talker.xml")
    text = teacher_forcing.read(artifact("rollout", VARIANT), "held_out")[0]
    talker.reset_state()
    answer = talker.infer(teacher_forcing.talker_call(text["inputs"]))["logits"][0, 0]
    np.testing.assert_allclose(answer, text["logits"][-1], atol=1e-3 * np.ptp(text["logits"][-1]))
    assert len(np.unique(text["codes"])) > 16, "codes that hardly vary are useless for calibration and judgement"


def test_forced_noise_draws_the_intended_codes(artifact):
    xml = artifact("export", VARIANT) / "code_predictor.xml"
    model, predictor, codes = ov.Core().read_model(xml), request(xml), np.random.default_rng(1).integers(0, 2048, 16)
    hidden = np.random.default_rng(2).standard_normal((1, 64), dtype=np.float32)
    call = teacher_forcing.frame_call(hidden, codes[:1], teacher_forcing.forced_noise(model, codes))
    np.testing.assert_array_equal(predictor.infer(call)["codes"][0], codes)


def test_a_greedy_frame_is_the_likeliest_at_each_of_its_own_steps(artifact):
    predictor = request(artifact("export", VARIANT) / "code_predictor.xml")
    hidden = np.random.default_rng(3).standard_normal((1, 64), dtype=np.float32)
    free = teacher_forcing.frame_call(hidden, np.array([7]), np.ones((1, 15, 2048), np.float32))
    codes = predictor.infer(free)["codes"][0].copy()
    np.testing.assert_array_equal(teacher_forcing.likeliest(predictor, hidden[0], codes), codes[1:])


# ---- the loss of each precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_network_is_judged_and_within_its_bounds(artifact, precision):
    found = report(artifact, precision)
    assert found["missed"] == []
    for name, said in found["components"].items():
        assert said["quality"].keys() == MEASURES.get(name, set())
        assert said["quality"].keys() <= said["bounds"].keys()
        assert missed(name, said["quality"], {measure: said["bounds"][measure] for measure in said["quality"]}) == []
        if precision == "fp16" and name == "talker":
            assert said["quality"] == {"top1": 1, "top5": 1, "kl": 0}


def test_fewer_bits_give_smaller_graphs_further_from_the_export(artifact):
    cells = [report(artifact, precision) for precision in ("fp16", "int8", "int4")]
    talkers = [cell["components"]["talker"] for cell in cells]
    assert sorted(talkers, key=lambda talker: -talker["bytes"]) == talkers
    assert sorted(talkers, key=lambda talker: talker["quality"]["kl"]) == talkers
    panels = [{point["panel"]: point for point in cell["costs"]} for cell in cells]
    assert panels[0].keys() == panels[1].keys() == panels[2].keys()
    for panel, talker in zip(panels, talkers, strict=True):
        assert panel["talker: top1"]["megabytes"] == talker["bytes"] / 1e6
        assert panel["talker: top1"]["quality"] == talker["quality"]["top1"]


def test_four_bits_are_where_the_policy_puts_them(artifact):
    folder = artifact("compress", VARIANT, "int4")
    talker, head = Checkpoint(artifact("download", VARIANT)).load("talker"), 3072 * 64
    layers = sum(weight.numel() for name, weight in talker.named_parameters() if name.endswith("proj.weight"))
    stored = constants(folder / "talker.xml")
    assert (stored["i4"], stored["i8"]) == (layers, head)
    assert "i4" not in constants(folder / "code_predictor.xml")


@pytest.mark.parametrize("name", ["talker", pytest.param("code_predictor", marks=pytest.mark.prove)])
def test_the_smallest_is_calibrated_and_gives_the_same_bytes_twice(artifact, tmp_path: Path, name):
    exported, spoken = artifact("export", VARIANT) / f"{name}.xml", artifact("rollout", VARIANT)
    policy = section("int4-max", "weights")[name]
    assert policy["calibrated"]
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        alone(compress, exported, tmp_path / folder / exported.name, policy, spoken)
    for ending in (".xml", ".bin"):
        one, other = ((tmp_path / folder / name).with_suffix(ending) for folder in ("one", "other"))
        assert filecmp.cmp(one, other, shallow=False)
    assert constants(tmp_path / "one" / exported.name)["i4"] > 0
    figures = judge(name, request(tmp_path / "one" / exported.name), exported, spoken)
    assert missed(name, figures, section("int4-max", "synthetic")[name]) == []

    alone(compress, exported, tmp_path / exported.name, policy | UNCALIBRATED, spoken)
    assert not filecmp.cmp(tmp_path / f"{name}.bin", tmp_path / "one" / f"{name}.bin", shallow=False), "it made no use"


@pytest.mark.parametrize(
    ("name", "policy", "measure"),
    [
        ("speech_decoder", {"mode": "int4_sym", "group_size": 32, "all_layers": True} | ADJUST, "waveform_snr_db"),
        ("speech_encoder", {"mode": "int8_sym"}, "code_agreement"),
        ("talker", {"mode": "int4_sym", "group_size": -1, "all_layers": True}, "top1"),
    ],
)
def test_a_policy_that_ruins_a_network_misses_its_bounds(artifact, tmp_path: Path, name, policy, measure):
    exported, spoken = artifact("export", VARIANT) / f"{name}.xml", artifact("rollout", VARIANT)
    alone(compress, exported, tmp_path / exported.name, policy, spoken)
    bounds = section("int8", "bounds") | section("int8", "synthetic")
    misses = missed(name, judge(name, request(tmp_path / exported.name), exported, spoken), bounds[name])
    assert re.match(
        rf"{name}: {measure} is .*, bound: at least ", {miss.measure: str(miss) for miss in misses}[measure]
    )


@pytest.mark.parametrize(
    ("section", "entry", "message"),
    [
        ("weights", "vocoder={mode: f16}", "weights names an unknown component 'vocoder'; known: text_embedding, "),
        ("bounds", "vocoder={}", "bounds names an unknown component 'vocoder'; known: text_embedding, "),
        ("bounds", "talker={top3: 1}", "bounds names an unknown measure 'top3'; known: snr_db, "),
        (
            "synthetic",
            "talker={top3: 1}",
            "synthetic names an unknown measure 'top3'; known: snr_db, agreement, top1, ",
        ),
    ],
)
def test_a_meaningless_policy_is_refused(section, entry, message):
    cfg = configuration(["precision=int8", f"++precision.{section}.{entry}"])
    with pytest.raises(PipelineError, match=rf"^conf/precision/int8\.yaml: {message}"):
        by_component(cfg.precision, section)


def test_only_networks_that_process_text_can_be_calibrated(artifact, tmp_path: Path):
    policy = {"mode": "int4_sym", "group_size": 32, "calibrated": True}
    exported, spoken = artifact("export", VARIANT) / "speech_encoder.xml", artifact("rollout", VARIANT)
    with pytest.raises(PipelineError, match="only talker and code_predictor can be calibrated, not speech_encoder"):
        compress(exported, tmp_path / exported.name, policy, spoken)
