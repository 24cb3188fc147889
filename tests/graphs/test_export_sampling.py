"""Sampling inside the code predictor's graph: the official rules on the caller's noise."""

from collections.abc import Mapping

import numpy as np
import openvino as ov
import pytest
import torch

from model_src.checkpoint import Checkpoint
from model_src.code_predictor import CodePredictor
from model_src.sampling import draw
from pipeline.graphs.teacher_forcing import EXACT
from qwen3_tts_ov.sampling import exponential
from tests.exported import Call, answers, frame_inputs, request
from tests.official import assert_drawn_from, softmax

VARIANT, WIDTH, CODES = "tiny-base", 64, 2048
BATCH, DRAWS = 16, 20_000
GRID = [
    {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    for temperature in (0.3, 0.9, 1.7)
    for top_k in (1, 2, 50, CODES)
    for top_p in (1.0, 0.9, 0.3)
]


@pytest.fixture(scope="module")
def network(artifact) -> CodePredictor:
    return Checkpoint(artifact("download", VARIANT)).load("code_predictor")


@pytest.fixture(scope="module")
def first_embedding(artifact) -> torch.nn.Module:
    return Checkpoint(artifact("download", VARIANT)).load("codec_embedding")


@pytest.fixture
def predictor(artifact) -> ov.InferRequest:
    return request(artifact("export", VARIANT) / "code_predictor.xml")


@torch.inference_mode()
def logits(network: CodePredictor, first_embedding: torch.nn.Module, call: Call, codes: np.ndarray) -> np.ndarray:
    """The network's logits [batch, groups - 1, codes] that lead to `codes` [batch, groups], all groups in one pass."""
    chosen = torch.from_numpy(codes)
    inputs = [torch.from_numpy(call["talker_hidden"]), first_embedding(chosen[:, :1])]
    inputs += [table(chosen[:, [group]]) for group, table in enumerate(network.embeddings[:-1], start=1)]
    hidden, _ = network.decode(torch.cat(inputs, dim=1), 0)
    return torch.stack([head(hidden[:, group]) for group, head in enumerate(network.heads, start=1)], dim=1).numpy()


def official_scores(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """transformers' warpers in their order, in float64 over logits [..., codes]; excluded codes are -inf."""
    scores = logits.astype(np.float64) / np.float32(temperature)
    kth = np.sort(scores, axis=-1)[..., [-top_k]]
    scores = np.where(scores < kth, -np.inf, scores)
    if top_p < 1:
        order = np.argsort(scores, axis=-1)
        powers = np.exp(np.take_along_axis(scores, order, axis=-1) - scores.max(axis=-1, keepdims=True))
        dropped = np.cumsum(powers / powers.sum(axis=-1, keepdims=True), axis=-1) <= 1 - np.float32(top_p)
        dropped[..., -1] = False
        unsorted = np.empty_like(dropped)
        np.put_along_axis(unsorted, order, dropped, axis=-1)
        scores = np.where(unsorted, -np.inf, scores)
    return scores


def frame_of(call: Call, predictor: ov.InferRequest) -> np.ndarray:
    return answers(predictor, [call])[0]["codes"]


@pytest.mark.parametrize("rules", [{"temperature": 0.3, "top_k": 1}, {}, {"top_k": CODES, "top_p": 0.3}])
def test_noise_of_ones_gives_the_likeliest_code_of_every_group(predictor, network, first_embedding, rules):
    call = frame_inputs(network, WIDTH, BATCH, np.random.default_rng(5), **rules)
    call["noise"] = np.ones_like(call["noise"])
    codes = frame_of(call, predictor)
    np.testing.assert_array_equal(codes[:, 0], call["first_code"][:, 0])
    np.testing.assert_array_equal(codes[:, 1:], logits(network, first_embedding, call, codes).argmax(axis=-1))


class Draw(torch.nn.Module):
    def __init__(self, candidates: int | None) -> None:
        super().__init__()
        self.candidates = candidates

    def forward(self, logits, noise, temperature, top_k, top_p):
        return draw(logits, noise, temperature, top_k, top_p, self.candidates)


@pytest.mark.parametrize("candidates", [None, 64])
@pytest.mark.parametrize("rules", [{"top_k": 1}, {"top_k": 50}, {"top_k": 60, "top_p": 0.8}], ids=str)
def test_what_is_drawn_from_codes_that_tie_does_not_depend_on_the_other_rows(rules, candidates):
    rng, settings = np.random.default_rng(0), {"temperature": 0.7, "top_p": 1.0} | rules
    logits = rng.integers(0, 60, (5, CODES)).astype(np.float32) / 6  # some thirty codes for each value
    common = {name: np.array([value], np.int64 if name == "top_k" else np.float32) for name, value in settings.items()}
    for noise in np.ones_like(logits), exponential(rng, logits.shape):
        scores = official_scores(logits, **settings)
        for batch in 1, 2, 5:
            inputs = {"logits": logits[:batch], "noise": noise[:batch], **common}
            example = {name: torch.from_numpy(value) for name, value in inputs.items()}
            model = ov.convert_model(Draw(candidates), example_input=example)
            codes = ov.compile_model(model, "CPU", EXACT)(inputs)[0][:, 0]
            expected = (scores - np.log(noise))[:batch].argmax(axis=-1)
            np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("rules", GRID, ids=lambda rules: "-".join(map(str, rules.values())))
def test_noise_selects_codes_by_the_official_rules(predictor, network, first_embedding, rules: Mapping[str, float]):
    call = frame_inputs(network, WIDTH, BATCH, np.random.default_rng(6), **rules)
    codes = frame_of(call, predictor)
    scores = official_scores(logits(network, first_embedding, call, codes), **rules)
    np.testing.assert_array_equal(codes[:, 1:], (scores - np.log(call["noise"])).argmax(axis=-1))


def first_draw(model: ov.Model) -> ov.CompiledModel:
    """The graph up to the first code that it draws: the other groups would take fourteen times longer."""
    joined = model.output("codes").get_node().input_value(0).get_node()
    assert joined.get_type_name() == "Concat"
    return ov.Core().compile_model(ov.Model([joined.input_value(1)], model.get_parameters()), "CPU", EXACT)


@pytest.mark.parametrize("rules", [{"top_k": 50, "top_p": 1.0}, {"top_k": 200, "top_p": 0.8}], ids=["top-k", "top-p"])
def test_draws_follow_the_softmax(artifact, network, first_embedding, rules: Mapping[str, float]):
    batch, rng = 500, np.random.default_rng(7)
    call = frame_inputs(network, WIDTH, 1, rng, **rules)
    codes_so_far = np.repeat(call["first_code"], 16, axis=1)  # only the first affects the group after it
    scores = official_scores(logits(network, first_embedding, call, codes_so_far), 0.9, **rules)
    for port in ("talker_hidden", "first_code", "noise"):
        call[port] = np.repeat(call[port], batch, axis=0)

    model = ov.Core().read_model(artifact("export", VARIANT) / "code_predictor.xml")
    drawn, codes = first_draw(model).create_infer_request(), []
    for _ in range(DRAWS // batch):
        call["noise"][:, 0] = exponential(rng, (batch, CODES))
        codes.append(drawn.infer(call, share_inputs=True)[0][:, 0].copy())
    assert_drawn_from(np.concatenate(codes), softmax(scores[0, 0]))
