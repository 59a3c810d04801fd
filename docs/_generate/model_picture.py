"""The picture of the whole model: ``python -m docs._generate.model_picture`` writes it.

``docs/_static/model.svg``: every operation in the order of the pass, with its tap points, their
axes and the sizes of tiny, gpt-oss-20b and gpt-oss-120b. A box links to the chapter that explains
it, its second line to the source, each tap point to the list of taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from gptoss_ref.checkpoint import load_checkpoint
from gptoss_ref.config import GPT_OSS_20B, GPT_OSS_120B
from gptoss_ref.tracing.taps import TAPS

PAGE = Path(__file__).parents[1] / "_static" / "model.svg"

WIDTH, BOX, LEFT, TAPS_AT, ROW = 860, 250, 60, 330, 17
STYLE = """
svg { font-family: system-ui, sans-serif; font-size: 13px; }
text { fill: #1b1f24; }
.box { fill: #f3f5f8; stroke: #6a7380; }
.attn { fill: #e2eefc; } .mlp { fill: #e6f4e4; } .frame { fill: none; stroke: #9aa4b0; }
.line { stroke: #6a7380; fill: none; stroke-width: 1.4; }
.small { font-size: 11px; fill: #4a525c; }
.mono { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 11.5px; }
.title { font-weight: 600; } .right { text-anchor: end; }
a text { fill: #0b5cad; } a:hover text { text-decoration: underline; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e8ee; } .small { fill: #b0b8c4; }
  .box { fill: #22272e; stroke: #8b949e; } .attn { fill: #1b2d44; } .mlp { fill: #1d3321; }
  .frame { stroke: #667080; } .line { stroke: #8b949e; } a text { fill: #79b8ff; }
}
"""


@dataclass(frozen=True)
class Operation:
    """A box: its title and chapter, its source, the tap points that it makes."""

    title: str
    chapter: str
    source: str
    taps: tuple[str, ...]
    kind: str = ""


OPERATIONS = (
    Operation("Embedding", "01_tokens", "layers/embedding.py", ("embedding",)),
    Operation("RMSNorm", "02_residual_stream", "layers/rmsnorm.py", ("attn.norm",), "attn"),
    Operation(
        "Linear: queries, keys, values",
        *("02_residual_stream", "layers/linear.py", ("attn.q", "attn.k", "attn.v"), "attn"),
    ),
    Operation(
        "RoPE with YaRN", "03_rotary", "layers/rope.py", ("attn.q_rope", "attn.k_rope"), "attn"
    ),
    Operation(
        "Attention: window, sinks",
        *("04_attention", "layers/attention.py", ("attn.weights", "attn.mix"), "attn"),
    ),
    Operation("Linear", "02_residual_stream", "layers/linear.py", ("attn.out",), "attn"),
    Operation("+ residual", "02_residual_stream", "model.py", ("attn.residual",), "attn"),
    Operation("RMSNorm", "02_residual_stream", "layers/rmsnorm.py", ("mlp.norm",), "mlp"),
    Operation(
        "Router: A of E experts",
        *("05_experts", "layers/router.py"),
        ("mlp.router_logits", "mlp.expert_indices", "mlp.expert_weights"),
        "mlp",
    ),
    Operation(
        "Experts: first matrix, MXFP4", "07_mxfp4", "layers/mxfp4.py", ("mlp.gate_up",), "mlp"
    ),
    Operation("Clamped SwiGLU", "06_swiglu", "layers/swiglu.py", ("mlp.swiglu",), "mlp"),
    Operation(
        "Experts: second matrix", "05_experts", "layers/experts.py", ("mlp.expert_out",), "mlp"
    ),
    Operation("Weighted sum", "05_experts", "layers/experts.py", ("mlp.out",), "mlp"),
    Operation("+ residual", "02_residual_stream", "model.py", ("mlp.residual",), "mlp"),
    Operation("RMSNorm", "02_residual_stream", "layers/rmsnorm.py", ("norm",)),
    Operation("Linear: unembedding", "09_sampling", "layers/linear.py", ("logits",)),
)


def sizes() -> list[tuple[str, str, list[int]]]:
    """Axis letter, meaning, and the size in tiny, 20b and 120b."""
    configs = (load_checkpoint("tiny").config, GPT_OSS_20B, GPT_OSS_120B)

    def row(letter: str, meaning: str, field: str) -> tuple[str, str, list[int]]:
        return letter, meaning, [getattr(config, field) for config in configs]

    return [
        row("N", "blocks", "num_hidden_layers"),
        row("V", "vocabulary", "vocab_size"),
        row("D", "hidden size", "hidden_size"),
        row("H", "query heads", "num_attention_heads"),
        row("K", "key and value heads", "num_key_value_heads"),
        row("C", "head size", "head_dim"),
        row("W", "window, every other block", "sliding_window"),
        row("E", "experts", "num_experts"),
        row("A", "experts per token", "experts_per_token"),
        row("F", "width of an expert", "intermediate_size"),
    ]


def axes_of(tap: str) -> str:
    """``(T, D)`` of a tap point."""
    axes = TAPS.get(tap) or TAPS["block.{n}." + tap]
    return f"({', '.join(axes)})".replace("*", "·")


def link(target: str, text: str) -> str:
    return f'<a href="../{target}" target="_top">{text}</a>'


def picture() -> str:
    """The SVG."""
    parts: list[str] = []
    y = 60
    centre = LEFT + BOX / 2
    parts.append(f'<text class="title" x="{LEFT}" y="24">tokens (T,)</text>')
    tops: dict[int, int] = {}
    bottom = 30
    for number, op in enumerate(OPERATIONS):
        if number in (1, len(OPERATIONS) - 2):
            y += 14
        height = max(38, ROW * len(op.taps) + 8)
        tops[number] = y
        parts.append(f'<path class="line" d="M{centre} {bottom}V{y}"/>')
        parts.append(
            f'<rect class="box {op.kind}" x="{LEFT}" y="{y}" width="{BOX}" '
            f'height="{height}" rx="6"/>'
        )
        title = f'<text class="title" x="{LEFT + 10}" y="{y + 16}">{escape(op.title)}</text>'
        parts.append(link(f"tutorial/{op.chapter}.html", title))
        source = f'<text class="small mono" x="{LEFT + 10}" y="{y + 31}">{op.source}</text>'
        module = op.source.removesuffix(".py")
        parts.append(link(f"_modules/gptoss_ref/{module}.html", source))
        for i, tap in enumerate(op.taps):
            at = y + (23 if len(op.taps) == 1 else 16 + ROW * i)
            name = f'<text class="mono" x="{TAPS_AT}" y="{at}">{tap}</text>'
            parts.append(link("reference/taps.html", name))
            parts.append(
                f'<text class="mono small" x="{TAPS_AT + 160}" y="{at}">{axes_of(tap)}</text>'
            )
        bottom = y + height
        y = bottom + 9
    for first, last in ((1, 6), (7, 13)):  # the residual stream passes by
        start, end = tops[first] - 6, tops[last] + 19
        parts.append(f'<path class="line" d="M{centre} {start}H{LEFT - 22}V{end}H{LEFT}"/>')
    top, bottom = tops[1] - 14, tops[13] + 46
    parts.append(
        f'<rect class="frame" x="{LEFT - 40}" y="{top}" width="552" '
        f'height="{bottom - top}" rx="8"/>'
    )
    parts.append(
        f'<text class="small" x="{LEFT + 502}" y="{top + 16}" text-anchor="end">'
        "a block, N times: block.0. … block.{N−1}.</text>"
    )
    x, y0 = 580, 60
    heads = ("", "", "tiny", "20b", "120b")
    columns = (x, x + 16, x + 195, x + 237, x + 278)
    for text, at in zip(heads, columns, strict=True):
        parts.append(f'<text class="title right" x="{at}" y="{y0}">{text}</text>')
    for i, (letter, meaning, values) in enumerate(sizes()):
        at = y0 + 20 * (i + 1)
        parts.append(f'<text class="mono title" x="{columns[0]}" y="{at}">{letter}</text>')
        parts.append(f'<text class="small" x="{columns[1]}" y="{at}">{meaning}</text>')
        for value, column in zip(values, columns[2:], strict=True):
            shown = f"{value:,}" if value < 100_000 else f"{value // 1000}k"
            parts.append(f'<text class="mono right" x="{column}" y="{at}">{shown}</text>')
    note = (
        "T tokens of the pass, S keys that a query may see.",
        "Each name on the left opens its chapter.",
    )
    for i, text in enumerate(note):
        parts.append(f'<text class="small" x="{x}" y="{y0 + 20 * 11 + 12 + 16 * i}">{text}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 20} {y + 6}" role="img" '
        f'aria-label="gpt-oss: every operation, its tap points and their sizes">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    PAGE.write_text(picture(), "utf-8")
