"""Parameter counts and bytes of a model by component, total and active per token.

The counts follow the model card's table (arXiv 2508.10925, table 1): MLP is experts and router with
their biases, attention includes its biases and sinks. *Active* counts the experts that one token
uses and the unembedding, but not the embedding, of which a token reads a single row.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_ref.cache import windowed_room
from gptoss_ref.checkpoint import Checkpoint, load_checkpoint
from gptoss_ref.checkpoint.names import Layout, places
from gptoss_ref.checkpoint.reader import DTYPE_BITS
from gptoss_ref.config import GPT_OSS_20B, GPT_OSS_120B, SLIDING, ModelConfig
from gptoss_ref.errors import CheckpointError
from gptoss_ref.weights import MXFP4_BLOCK

RELEASED = {
    "20b": GPT_OSS_20B,
    "120b": GPT_OSS_120B,
    "gpt-oss-20b": GPT_OSS_20B,
    "gpt-oss-120b": GPT_OSS_120B,
}
"""Names of the released configurations, without weights."""

KV_LENGTHS = (4_096, 32_768, 131_072)
"""Numbers of tokens for which the cost of the key/value cache is shown."""

_COMPONENTS = ("attention", "router", "experts", "norms", "embedding", "unembedding")


@dataclass(frozen=True)
class Component:
    """Parameters of one kind in all layers: total, active per token, and bytes on disk."""

    name: str
    total: int
    active: int
    nbytes: int


@dataclass(frozen=True)
class Info:
    """A configuration with its parameter counts and sizes.

    Attributes:
        name: the model, as given to :func:`describe`.
        config: its configuration.
        layout: `hf` or `openai`; None if there is only a configuration.
        experts: `mxfp4` or `bfloat16`, as stored. For a configuration without weights: MXFP4, or
            bfloat16 if blocks of 32 do not fit; all other weights count as bfloat16.
        path: the checkpoint's folder, or None.
        components: attention, router, experts, norms, embedding, unembedding.
    """

    name: str
    config: ModelConfig
    layout: str | None
    experts: str
    path: str | None
    components: tuple[Component, ...]

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(c.total for c in self.components)

    @property
    def active(self) -> int:
        """Parameters used per token."""
        return sum(c.active for c in self.components)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(c.nbytes for c in self.components)

    def component(self, name: str) -> Component:
        """The component with this name."""
        return next(c for c in self.components if c.name == name)

    @property
    def card(self) -> dict[str, int]:
        """The rows of the model card's table: parameters, and bytes for `checkpoint`."""
        part = {c.name: c.total for c in self.components}
        return {
            "MLP": part["experts"] + part["router"],
            "attention": part["attention"],
            "embed + unembed": part["embedding"] + part["unembedding"],
            "active": self.active,
            "total": self.total,
            "checkpoint": self.nbytes,
        }

    @property
    def windowed_layers(self) -> int:
        """Number of layers with a sliding window."""
        return self.config.attention_types.count(SLIDING)

    def kv_cache_bytes_per_token(self, bytes_per_value: int = 4) -> int:
        """Bytes of the keys and values of one token, in the full layers, which keep every token.

        `bytes_per_value` is 4 under the policies float32 and bfloat16, and 8 under float64.
        """
        full_layers = self.config.num_hidden_layers - self.windowed_layers
        return full_layers * self._kv_values * bytes_per_value

    def kv_cache_windowed_bytes(self, bytes_per_value: int = 4) -> int:
        """Bytes that all windowed layers allocate, whatever the number of tokens."""
        room = self.windowed_layers * windowed_room(self.config.sliding_window)
        return room * self._kv_values * bytes_per_value

    def kv_cache_bytes(self, tokens: int, bytes_per_value: int = 4) -> int:
        """Bytes of the keys and values of a number of tokens."""
        windowed = self.kv_cache_windowed_bytes(bytes_per_value) if tokens else 0
        return tokens * self.kv_cache_bytes_per_token(bytes_per_value) + windowed

    @property
    def _kv_values(self) -> int:
        return 2 * self.config.num_key_value_heads * self.config.head_dim

    @property
    def _kv_lengths(self) -> list[int]:
        """The numbers of tokens in the table: those within the context."""
        context = self.config.max_position_embeddings
        return [n for n in KV_LENGTHS if n <= context] or [context]

    def to_json(self) -> dict[str, Any]:
        """The same, for ``json.dumps``."""
        return {
            "name": self.name,
            "path": self.path,
            "layout": self.layout,
            "experts": self.experts,
            "config": dataclasses.asdict(self.config),
            "components": [dataclasses.asdict(c) for c in self.components],
            "parameters": self.total,
            "active_parameters": self.active,
            "bytes": self.nbytes,
            "kv_cache": {
                "dtype": "float32",
                "bytes_per_token": self.kv_cache_bytes_per_token(),
                "bytes_of_windowed_layers": self.kv_cache_windowed_bytes(),
                "bytes_at": {str(n): self.kv_cache_bytes(n) for n in self._kv_lengths},
            },
            "model_card": self.card,
        }

    def __str__(self) -> str:
        c = self.config
        lines = [
            f"{self.name}: "
            + (f"{self.layout} layout, " if self.layout else "")
            + f"{self.experts} experts, "
            + (self.path or "no weights"),
            f"{c.num_hidden_layers} layers "
            f"({self.windowed_layers} with a window of {c.sliding_window}), "
            f"D {c.hidden_size}, F {c.intermediate_size}, V {c.vocab_size}",
            f"heads H {c.num_attention_heads} / K {c.num_key_value_heads}, size C {c.head_dim}; "
            f"experts E {c.num_experts}, A {c.experts_per_token} per token; "
            f"context {c.max_position_embeddings}",
            "",
            f"{'':<12}{'parameters':>18}{'active':>16}{'bytes':>18}",
        ]
        rows = [*self.components, Component("total", self.total, self.active, self.nbytes)]
        lines += [f"{r.name:<12}{r.total:>18,}{r.active:>16,}{r.nbytes:>18,}" for r in rows]
        card = self.card
        lines += [
            "",
            f"{short(self.total)} parameters, {short(self.active)} active; "
            f"MLP {short(card['MLP'])}, attention {short(card['attention'])}, "
            f"embed + unembed {short(card['embed + unembed'])}; {size(self.nbytes)}",
            f"key/value cache, float32: {size(self.kv_cache_bytes_per_token())} per token, and "
            f"{size(self.kv_cache_windowed_bytes())} for the windowed layers at any length: "
            + ", ".join(f"{size(self.kv_cache_bytes(n))} at {n:,}" for n in self._kv_lengths),
        ]
        return "\n".join(lines)


def describe(model: str | Path | ModelConfig | Checkpoint) -> Info:
    """The parameter table of a model.

    Args:
        model: `20b` or `120b` for a released configuration, with no weights, unless there is a
            folder of that name; a configuration; a loaded checkpoint; or anything that
            `load_checkpoint` takes.

    Raises:
        ConfigError, CheckpointError: as `load_checkpoint`.
    """
    if isinstance(model, ModelConfig):
        return _from_config("configuration", model)
    if isinstance(model, Checkpoint):
        return _from_checkpoint(str(model.path), model)
    if isinstance(model, str) and "/" not in model and not Path(model).exists():
        name = model.lower()
        if name in RELEASED:
            return _from_config(f"gpt-oss-{name.removeprefix('gpt-oss-')}", RELEASED[name])
        near = difflib.get_close_matches(name, RELEASED, 1)
        if near:
            raise CheckpointError(f"{model}: no such folder: did you mean {near[0]}?")
    return _from_checkpoint(str(model), load_checkpoint(model))


def _from_config(name: str, config: ModelConfig) -> Info:
    blocks = config.hidden_size % MXFP4_BLOCK == 0 == config.intermediate_size % MXFP4_BLOCK
    components = _components(config, "hf" if blocks else "hf-bfloat16", None)
    return Info(name, config, None, "mxfp4" if blocks else "bfloat16", None, components)


def _from_checkpoint(name: str, checkpoint: Checkpoint) -> Info:
    components = _components(checkpoint.config, checkpoint.layout, checkpoint)
    layout = "openai" if checkpoint.layout == "openai" else "hf"
    path = str(checkpoint.path)
    return Info(name, checkpoint.config, layout, checkpoint.experts, path, components)


def _components(
    config: ModelConfig, layout: Layout, checkpoint: Checkpoint | None
) -> tuple[Component, ...]:
    totals = dict.fromkeys(_COMPONENTS, 0)
    sizes = dict.fromkeys(_COMPONENTS, 0)
    for place in places(config, layout):
        name = _component(place.weight)
        shape = place.shape
        if place.rows is not None:
            shape = (place.rows[1] - place.rows[0], *shape[1:])
        values = math.prod(shape)
        dtype = "U8" if place.kind == "bytes" else "BF16"
        if checkpoint is not None:
            dtype = checkpoint.shards[place.tensor].dtype
        sizes[name] += values * DTYPE_BITS[dtype] // 8
        if place.weight.endswith(".blocks"):
            totals[name] += 2 * values  # two codes a byte
        elif not place.weight.endswith(".scales"):
            totals[name] += values
    active = dict(totals)
    active["experts"] = totals["experts"] * config.experts_per_token // config.num_experts
    active["embedding"] = 0
    return tuple(Component(name, totals[name], active[name], sizes[name]) for name in _COMPONENTS)


def _component(weight: str) -> str:
    """The component of a weight, by its name."""
    if weight.endswith("norm_scale"):
        return "norms"
    if ".attn." in weight:
        return "attention"
    if ".mlp.gate_" in weight:
        return "router"
    return "experts" if ".mlp." in weight else weight


def short(count: int) -> str:
    """A count of parameters as the model card prints it: 20.91 B; smaller ones in M or K.

    >>> short(20_914_757_184), short(1_843_200)
    ('20.91 B', '1.84 M')
    """
    for unit, scale in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= scale or (unit == "B" and count >= 10**8):
            return f"{count / scale:.2f} {unit}"
    return str(count)


def size(nbytes: int) -> str:
    """Bytes in binary units, as the model card prints them.

    >>> size(13_761_264_768), size(3_145_728)
    ('12.8 GiB', '3.0 MiB')
    """
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} B"
