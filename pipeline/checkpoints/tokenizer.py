"""The text tokenizer of Qwen3-TTS as files: vocab.json, merges.txt, tokenizer_config.json, from the BPE ranks.

The committed vocabulary is the rank file of Qwen's byte-level BPE (data/README.md): one token per
line, in the order of the merges. A rank file says which byte strings are tokens; merges.txt says which two tokens
each one came from. Running the BPE on a token with only the ranks below its own leaves exactly those two.
"""

import base64
import json
import lzma
from functools import cache
from itertools import pairwise
from pathlib import Path

RANKS = Path(__file__).parent / "data" / "qwen.tiktoken.xz"

# The ids after the ranks, in order. The first 26 are Qwen3's, the last seven came with Qwen3-Omni and Qwen3-TTS.
ADDED_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
    "<tool_call>", "</tool_call>",
    "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
    "<tool_response>", "</tool_response>", "<think>", "</think>",
    "<|audio_start|>", "<|audio_end|>",
    "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>", "<|audio_pad|>",
)  # fmt: skip
# Added to the vocabulary but kept when special tokens are skipped in decoding.
PLAIN_TOKENS = frozenset(ADDED_TOKENS[14:26])
# Names by which the processors of the Qwen omni models find their placeholders.
MODALITY_TOKENS = {
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
    "audio_token": "<|audio_pad|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}


def write(directory: Path) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json; the first two equal the released files byte for byte."""
    vocabulary = {printable(token): rank for rank, token in enumerate(ranks())}
    compact = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    (directory / "vocab.json").write_bytes(compact.encode())
    lines = (f"{printable(left)} {printable(right)}\n" for left, right in merges())
    (directory / "merges.txt").write_bytes("".join(lines).encode())
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2))


@cache
def ranks() -> tuple[bytes, ...]:
    """The tokens in the order of their ranks, which are their ids: first the 256 bytes, then what they merge into."""
    lines = lzma.decompress(RANKS.read_bytes()).splitlines()
    return tuple(base64.b64decode(line.split()[0]) for line in lines)


@cache
def merges() -> tuple[tuple[bytes, bytes], ...]:
    """The two tokens that each merged token was made from, in the order of the merges."""
    rank_of = {token: rank for rank, token in enumerate(ranks())}
    return tuple(halves(token, rank_of) for token in ranks() if len(token) > 1)


def halves(token: bytes, rank_of: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Merges the bytes of `token` by ascending rank until two parts are left: only their merge has its own rank."""
    parts = [token[i : i + 1] for i in range(len(token))]
    beyond = len(rank_of)
    while len(parts) > 2:
        pairs = [rank_of.get(left + right, beyond) for left, right in pairwise(parts)]
        i = min(range(len(pairs)), key=pairs.__getitem__)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


@cache
def printable_bytes() -> tuple[str, ...]:
    """A visible character for each byte: Latin-1 if printable, else the next one from U+0100 up (GPT-2's table)."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return tuple(chr(byte if byte in visible else 0x100 + hidden.index(byte)) for byte in range(256))


def printable(token: bytes) -> str:
    """How vocab.json and merges.txt spell a token."""
    table = printable_bytes()
    return "".join(table[byte] for byte in token)


def tokenizer_config() -> dict:
    """tokenizer_config.json: the class, the added tokens with their ids, and no token that is inserted unasked."""
    first = len(ranks())
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first + i): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token not in PLAIN_TOKENS,
            }
            for i, token in enumerate(ADDED_TOKENS)
        },
        "additional_special_tokens": [t for t in ADDED_TOKENS[1:] if t not in PLAIN_TOKENS],
        **MODALITY_TOKENS,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "extra_special_tokens": MODALITY_TOKENS,
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
