"""What speaking needs of a model: its graphs, and what its checkpoint says. `Bundle.model` gives one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RequestError, boundary
from .text import clean

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Sizes:
    """What graphs of fixed shapes were built for."""

    positions: int  # of a talker call
    cache: int  # slots for prompt and speech
    candidates: int  # the likeliest codes, among which the code predictor draws
    frames: int  # of a speech decoder call


@dataclass(frozen=True)
class Model:
    """Graphs that belong together, not yet compiled. They may lie in a bundle or stand alone, as they were exported."""

    name: str
    graphs: Mapping[str, Path]  # by component, the .xml; its weights are in the .bin beside it
    config: Mapping[str, Any]  # the checkpoint's config.json
    generation: Mapping[str, Any]  # its generation_config.json: the defaults of sampling and of text_first
    tokenizer: Tokenizer
    sample_rate: int  # of the speech, in Hz
    samples_per_frame: int
    default_voice: str | None = None  # None unless the kind is `custom_voice`
    # Recommended properties, by device and component; or another device to compile the component for.
    placement: Mapping[str, Any] = field(default_factory=dict)
    integer_weights: frozenset[str] = frozenset()  # the components whose weights are stored in 8 bits or fewer
    cache_key: str | None = None  # tells models apart in a cache of compiled graphs; without one nothing is cached
    sizes: Sizes | None = None  # of graphs with fixed shapes and no state; None for those that take any length

    @property
    def kind(self) -> str:
        """`custom_voice`, `voice_design` or `base`."""
        return self.config["tts_model_type"]

    @property
    def positions(self) -> int:
        """The most positions that a prompt and its speech may take together."""
        return self.sizes.cache if self.sizes else self.config["talker_config"]["max_position_embeddings"]

    @property
    def speakers(self) -> list[str]:
        """Voices by name; empty unless the kind is `custom_voice`."""
        return sorted(self.config["talker_config"].get("spk_id") or {})

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text without what is not heard; chat markup stands for control tokens. Raises RequestError."""
        with boundary(RequestError, "the text cannot be tokenized"):
            return self.tokenizer.encode(clean(text), add_special_tokens=False).ids
