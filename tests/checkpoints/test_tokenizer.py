"""The tokenizer files, compared with the released ones and with BPE by rank, which needs no merges."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from transformers import Qwen2Tokenizer

from pipeline.checkpoints import synthetic, tokenizer

RELEASED_SHA256 = {
    "vocab.json": "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910",
    "merges.txt": "599bab54075088774b1733fde865d5bd747cbcc7a547c5bc12610e874e26f5e3",
}
KNOWN_IDS = {
    "assistant": 77091,
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<tts_pad>": 151671,
    "<tts_text_bos>": 151672,
    "<tts_text_eod>": 151673,
    "<|audio_pad|>": 151675,
}
TEXTS = (
    "Hello there, it's 7 o'clock. \n\n  Two  spaces.",
    "今天天气很好，我们去公园散步吧。",
    "すみません、もう一度お願いします。",
    "안녕하세요, 만나서 반갑습니다.",
    "Grüße aus Köln — ça va très bien, señor Ñandú!",
    "Привет, как дела? Всё хорошо.",
    "Olá, você está bem? Perché no?",
    "naïve e\u0301 ☃ 👩‍🚀 ﷽ \u200b\t\x00",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.write(directory)
    shutil.copy(synthetic.RELEASE / "tokenizer_config.json", directory)
    return directory


@pytest.fixture(scope="module")
def reference(files) -> Qwen2Tokenizer:
    return Qwen2Tokenizer.from_pretrained(str(files), local_files_only=True)


@pytest.mark.parametrize("name", RELEASED_SHA256)
def test_file_is_the_released_one(files, name):
    assert hashlib.sha256((files / name).read_bytes()).hexdigest() == RELEASED_SHA256[name]


@pytest.mark.parametrize(("token", "token_id"), KNOWN_IDS.items())
def test_known_ids(reference, token, token_id):
    assert reference.encode(token) == [token_id]


@pytest.mark.parametrize("text", TEXTS)
def test_merges_follow_the_ranks(reference, text):
    rank_of = {token: rank for rank, token in enumerate(tokenizer.ranks())}
    pieces = reference.backend_tokenizer.pre_tokenizer.pre_tokenize_str(
        reference.backend_tokenizer.normalizer.normalize_str(text)
    )
    byte_of = {character: byte for byte, character in enumerate(tokenizer.printable_bytes())}
    expected = [i for piece, _ in pieces for i in encode(bytes(byte_of[c] for c in piece), rank_of)]
    assert reference.encode(text) == expected


def encode(piece: bytes, rank_of: dict[bytes, int]) -> list[int]:
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        ranks = [rank_of.get(parts[i] + parts[i + 1], len(rank_of)) for i in range(len(parts) - 1)]
        best = min(range(len(ranks)), key=ranks.__getitem__)
        if ranks[best] == len(rank_of):
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return [rank_of[part] for part in parts]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(reference, text):
    normalized = reference.backend_tokenizer.normalizer.normalize_str(text)
    assert reference.decode(reference.encode(text), clean_up_tokenization_spaces=False) == normalized


def test_special_tokens_are_skipped_but_plain_ones_are_not(reference):
    ids = reference.encode("<|im_start|>a<think>b<tts_pad><|im_end|>")
    assert reference.decode(ids, skip_special_tokens=True) == "a<think>b"


def test_added_tokens_follow_the_ranks(files):
    added = json.loads((files / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert list(map(int, added)) == list(range(151643, 151676))
    assert len(json.loads((files / "vocab.json").read_text())) == 151643
