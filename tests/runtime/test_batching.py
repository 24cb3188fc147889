"""Many requests in one pass: each gets the codes that it gets alone, whatever the others do, fail at or leave."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest

from qwen3_tts_ov import Bundle, DeviceError, RequestError, Synthesizer
from qwen3_tts_ov.app.server import application
from qwen3_tts_ov.batching import Blocks, Job, Seat
from qwen3_tts_ov.engine import why_alone
from qwen3_tts_ov.errors import Cancelled
from tests.conftest import until
from tests.serving import SPEECH, served

SLOTS = 4
GREEDY = {"do_sample": False, "subtalker_dosample": False}
# These networks are narrower than the groups in which activations are quantised, so theirs would stay floats, and the
# CPU plugin sums the float products of one row in another order than those of several.
ROWS_ALIKE = {name: {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64} for name in ("talker", "code_predictor")}
LONG = "One sentence here. Another one there! And a third? A fourth comes after it. The fifth is the last."


@pytest.fixture(scope="module")
def synthesizer(artifact: Callable[..., Path], model_cache: Path) -> Synthesizer:
    bundle = Bundle.load(artifact("bundle", "tiny-custom-voice", "int8"))
    return Synthesizer(bundle, properties=ROWS_ALIKE, cache_dir=model_cache, slots=SLOTS)


@pytest.fixture(autouse=True)
def whole(synthesizer: Synthesizer) -> Iterator[None]:
    """After every test, nobody speaks and no block is lost."""
    yield
    batch = synthesizer.engine.batch
    assert (batch.speaking, batch.waiting) == (0, 0)
    assert batch.blocks.free == batch.blocks.unreserved == batch.blocks.count


@pytest.fixture
def short_pieces(synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts are cut into pieces of at most 8 frames."""
    monkeypatch.setattr("qwen3_tts_ov.synthesizer.PIECE_SECONDS", 2.0)
    monkeypatch.setitem(synthesizer.model.generation, "max_new_tokens", 8)


def requests(count: int) -> list[dict]:
    """Seeded requests of several lengths and three kinds of sampling."""
    kinds = ({}, GREEDY, {"subtalker_temperature": 0.5, "top_k": 7})
    return [
        {"text": f"Number {at}." + " And more." * (at % 3), "seed": at, "max_frames": 2 + at % 5, **kinds[at % 3]}
        for at in range(count)
    ]


def overlapping(synthesizer: Synthesizer, count: int) -> None:
    expected = [synthesizer.speak(**each) for each in requests(count)]
    order = random.Random(0).sample(range(count), count)
    with ThreadPoolExecutor(2 * SLOTS) as pool:  # half of them wait
        found = pool.map(lambda at: synthesizer.speak(**requests(count)[at]), order)
        for at, speech in zip(order, found, strict=True):
            np.testing.assert_array_equal(speech.codes, expected[at].codes)
            np.testing.assert_array_equal(speech.waveform, expected[at].waveform)


def test_the_python_name_of_the_transformation_is_there_and_only_the_cpu_uses_it(synthesizer):
    assert why_alone(synthesizer.model, "CPU") == ""
    assert "the talker runs on GPU" in why_alone(synthesizer.model, "GPU")


def test_seeded_requests_in_random_overlap_get_the_codes_of_each_alone(synthesizer):
    passes, frames = synthesizer.engine.batch.passes, synthesizer.engine.batch.frames
    overlapping(synthesizer, 12)
    made = synthesizer.engine.batch.frames - frames
    assert synthesizer.engine.batch.passes - passes < 2 * made, "requests shared passes"


@pytest.mark.prove
def test_a_hundred_seeded_requests_in_random_overlap_get_the_codes_of_each_alone(synthesizer):
    overlapping(synthesizer, 100)


def test_contexts_of_several_blocks_give_the_same_codes_beside_others(synthesizer):
    """One block holds 32 positions; beyond that the plugin's attention would sum in an order of its own."""
    text = "This text is long enough to need several blocks of the cache, even before anything is spoken. " * 2
    each = [{"text": text, "seed": seed, "max_frames": 6} for seed in range(3)]
    alone = [synthesizer.speak(**one).codes for one in each]
    for codes, speech in zip(alone, synthesizer.speak_many(each), strict=True):
        np.testing.assert_array_equal(speech.codes, codes)


def test_many_texts_are_spoken_in_order_with_common_and_own_arguments(synthesizer):
    texts = ["One.", {"text": "Two.", "seed": 9}, "Three."]
    found = list(synthesizer.speak_many(texts, seed=5, max_frames=3))
    assert [speech.seed for speech in found] == [5, 9, 5]
    for text, speech in zip(("One.", "Two.", "Three."), found, strict=True):
        np.testing.assert_array_equal(speech.codes, synthesizer.speak(text, seed=speech.seed, max_frames=3).codes)


def test_closing_many_stops_those_that_are_being_spoken(synthesizer):
    speeches = synthesizer.speak_many(["Hi."] + [{"text": "On and on.", "max_frames": 1_000}] * 9, max_frames=2)
    next(speeches)
    speeches.close()


def test_many_texts_for_asyncio_can_be_cancelled(synthesizer):
    async def first_of_endless() -> int:
        endless = [{"text": "Hi.", "max_frames": 2}, {"text": "On and on.", "max_frames": 1_000}]
        speeches = synthesizer.speak_many_async(endless, seed=1)
        frames = len((await anext(speeches)).codes)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(speeches), 0.2)
        return frames

    assert asyncio.run(first_of_endless()) == 2


def test_a_request_waits_while_all_slots_are_taken_and_then_speaks(synthesizer):
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        streams = [stack.enter_context(synthesizer.stream("On.", seed=at, first_chunk=1)) for at in range(SLOTS)]
        for stream in streams:
            next(stream)
        late = pool.submit(synthesizer.speak, "Late.", seed=1, max_frames=2)
        until(lambda: synthesizer.engine.batch.waiting == 1)
        assert not late.done()
        streams[0].close()
        assert len(late.result(60).codes) == 2


def test_a_request_larger_than_the_whole_cache_is_refused_in_one_line(synthesizer, monkeypatch):
    blocks = synthesizer.engine.batch.blocks
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "count", 3)
        with pytest.raises(
            RequestError, match=r"may take \d+ positions .* which holds 96; lower max_frames, or"
        ) as error:
            synthesizer.speak("Hello.", max_frames=100)
    assert "\n" not in str(error.value)


def test_one_that_is_cancelled_while_it_waits_or_is_prefilled_leaves_at_once(synthesizer):
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        held = [stack.enter_context(synthesizer.stream("On.", seed=at, first_chunk=1)) for at in range(SLOTS)]
        for stream in held:
            next(stream)
        late = synthesizer.stream("Late.")
        waits = pool.submit(next, late)
        until(lambda: synthesizer.engine.batch.waiting == 1)
        late.cancel()
        with pytest.raises(Cancelled):
            waits.result(60)
    prefilled = synthesizer.stream("Hello.")
    talker, run = synthesizer.engine.batch._talker, synthesizer.engine.batch._talker.__call__

    def cancel_meanwhile(items: object) -> object:
        prefilled.cancel()
        return run(items)

    try:
        synthesizer.engine.batch._talker = cancel_meanwhile
        with pytest.raises(Cancelled):
            next(prefilled)
    finally:
        synthesizer.engine.batch._talker = talker


def test_a_fault_in_one_request_leaves_the_others_whole(synthesizer, monkeypatch):
    """Only the one whose embeddings are not finite gets an error; calls that failed together are repeated alone."""
    batch, expected = synthesizer.engine.batch, [synthesizer.speak(**each).codes for each in requests(3)]
    run, failed = batch._infer_together, []

    def fail_once(name: str, jobs: list) -> object:
        if len(jobs) > 1 and not failed:
            failed.append(name)
            raise DeviceError("talker failed: for once")
        return run(name, jobs)

    monkeypatch.setattr(batch, "_infer_together", fail_once)
    for codes, speech in zip(expected, synthesizer.speak_many(requests(3)), strict=True):
        np.testing.assert_array_equal(speech.codes, codes)
    assert failed
    sick = synthesizer.stream("Sick.", seed=1, first_chunk=1)
    embed = "qwen3_tts_ov.session.Session.embed"
    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        healthy = pool.submit(lambda: [speech.codes for speech in synthesizer.speak_many(requests(3))])
        patch.setattr(embed, lambda *_: (np.full((3, 64), np.nan, np.float32), np.zeros((1, 64), np.float32)))
        until(lambda: synthesizer.engine.batch.speaking or healthy.done())
        with pytest.raises(DeviceError):
            next(sick)
        with pytest.raises(DeviceError):
            raise healthy.exception(60) or DeviceError("it was through before")


def test_speech_decoders_that_run_side_by_side_fail_each_for_itself(synthesizer, monkeypatch):
    codes = synthesizer.speak("Hi.", seed=1, max_frames=4).codes
    batch, both = synthesizer.engine.batch, threading.Barrier(2, timeout=60)
    run = batch._infer_together
    monkeypatch.setattr(batch, "_infer_together", lambda name, jobs: (both.wait(), run(name, jobs))[1])
    seats = [Seat(batch, synthesizer.engine._request("speech_decoder")) for _ in range(2)]
    well, badly = (Job(seat, {name: codes.T[None]}) for seat, name in zip(seats, ("codes", "nothing"), strict=True))
    with ThreadPoolExecutor(2) as two:  # as many as streams; a plugin makes no more of those than it has cores
        monkeypatch.setattr(batch, "_side_by_side", two)
        batch._serve("speech_decoder", [well, badly])
    assert isinstance(badly.error, DeviceError)
    expected = synthesizer.engine._request("speech_decoder").infer({"codes": codes.T[None]})["waveform"]
    np.testing.assert_array_equal(well.result["waveform"], expected)


def test_a_batch_speaks_in_bf16(artifact, model_cache):
    """Where the processor has it, attention in bf16 takes no cache in f32, which bundles recommend."""
    bundle, bf16 = Bundle.load(artifact("bundle", "tiny-custom-voice", "int8")), {"INFERENCE_PRECISION_HINT": "bf16"}
    synthesizer = Synthesizer(bundle, properties={"talker": bf16}, cache_dir=model_cache, slots=2)
    assert [len(each.codes) for each in synthesizer.speak_many(["Hi.", "No."], seed=1, max_frames=3)] == [3, 3]


@pytest.mark.usefixtures("short_pieces")
def test_a_long_text_is_spoken_ahead_with_the_codes_and_samples_of_piece_by_piece(synthesizer):
    one_by_one = synthesizer.speak(LONG, seed=3, pieces_ahead=0)
    ahead = synthesizer.speak(LONG, seed=3)
    np.testing.assert_array_equal(ahead.codes, one_by_one.codes)
    np.testing.assert_allclose(ahead.waveform, one_by_one.waveform, atol=2e-2)  # in chunks of another size, in bf16
    assert ahead.stop_reason == one_by_one.stop_reason
    assert ahead.timings.calls == one_by_one.timings.calls


@pytest.mark.usefixtures("short_pieces")
def test_leaving_a_long_text_ends_the_pieces_that_are_spoken_ahead(synthesizer):
    before = threading.active_count()
    with synthesizer.stream(LONG, seed=1, first_chunk=1) as stream:
        list(islice(stream, 2))
    assert threading.active_count() == before


def measured(client: httpx2.Client) -> dict[str, float]:
    """What a server of one bundle tells Prometheus, by name."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#")]
    return {name.partition("{")[0]: float(value) for name, value in lines}


def test_listeners_of_a_server_share_passes_and_one_that_leaves_frees_its_blocks(synthesizer):
    batch = synthesizer.engine.batch
    endless = {"input": "On and on.", "max_frames": 2_000, "first_chunk": 1, "response_format": "pcm", "seed": 0}
    with served(application(synthesizer, slots=SLOTS)) as client:
        with (
            client.stream("POST", SPEECH, json=endless) as first,
            client.stream("POST", SPEECH, json=endless) as second,
        ):
            heard = [answer.iter_raw() for answer in (first, second)]  # a response whose iterator is dropped is closed
            assert all(map(next, heard))
            assert client.get("/health").json()["free_slots"] == SLOTS - 2
            told = measured(client)
            assert told["qwen3_tts_batch_requests"] == 2
            assert told["qwen3_tts_free_cache_blocks"] < batch.blocks.count
        until(lambda: batch.blocks.free == batch.blocks.count)
        assert client.post(SPEECH, json={"input": "Hi.", "max_frames": 2}).status_code == 200
        told = measured(client)
    assert (told["qwen3_tts_requests_total"], told["qwen3_tts_frames_total"]) == (1, 2)
    assert told["qwen3_tts_first_audio_seconds_count"] == 1
    assert told["qwen3_tts_batch_passes"] > 0


def test_blocks_that_were_given_back_last_are_taken_first():
    blocks = Blocks(4, 32)
    first = blocks.take(2)
    taken = list(first)
    blocks.give(first)
    assert (first, blocks.take(2), blocks.free) == ([], taken, 2)
    with pytest.raises(DeviceError, match="its cache is full"):
        blocks.take(3)
    assert [blocks.needed(positions) for positions in (0, 1, 32, 33)] == [0, 1, 1, 2]


@pytest.mark.prove
def test_a_thousand_joins_leaves_and_cancels_lose_no_block_and_no_memory(synthesizer):
    def visit(number: int) -> None:
        stream = synthesizer.stream(f"Number {number}.", seed=number, max_frames=2 + number % 9, first_chunk=1)
        with stream:
            list(islice(stream, number % 4))
            if number % 3 == 0:
                stream.cancel()

    resident = []
    for start in range(0, 1000, 250):
        with ThreadPoolExecutor(2 * SLOTS) as pool:
            list(pool.map(visit, range(start, start + 250)))
        resident.append(psutil.Process().memory_info().rss)
    assert resident[-1] - resident[1] < 16e6, resident
