"""The names of the tap points in other implementations: one table, and look-ups in it.

A module name (OpenAI's torch reference, transformers) means the module's output; with ``.input``
after it, its input. TransformerLens has hook names (of HookedTransformer, and of TransformerBridge
if they differ), llama.cpp the names that its eval-callback prints.

Sources: openai/gpt-oss gpt_oss/torch/model.py; transformers models/gpt_oss/modeling_gpt_oss.py;
TransformerLens components/{transformer_block, abstract_attention, mlps/gpt_oss_moe}.py and
model_bridge/supported_architectures/gpt_oss.py; llama.cpp src/models/openai-moe.cpp and
src/llama-graph.cpp.

A word after a name gives the layout of the array, if it differs in more than the order of axes:

==========  ======================================================================================
qkv         rows of q, then k, then v in one array (T, (H + 2K)·C)
gate, up    one half of ``mlp.gate_up`` each, (T, A, F)
dense       expert weights over all experts (T, E), zero for those not chosen
a,b,c       a form of :mod:`~gptoss_ref.verify.observe.adapters.layouts`, its axes joined by commas
==========  ======================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gptoss_ref.config import ModelConfig
from gptoss_ref.errors import TraceError
from gptoss_ref.tracing import taps

DIALECTS = ("openai", "transformers", "transformer_lens", "llama_cpp")

# stage | OpenAI torch, after block.N. | transformers, after model.layers.N. | TransformerLens,
# after blocks.N. | llama.cpp, before -N. A stage with several names has several rows.
_BLOCK = (
    ("attn.norm", "attn.norm", "input_layernorm", "", "attn_norm"),
    ("attn.norm", "attn.qkv.input", "self_attn.q_proj.input", "ln1.hook_out", ""),
    ("attn.q", "attn.qkv qkv", "self_attn.q_proj", "attn.hook_q", ""),
    ("attn.k", "attn.qkv qkv", "self_attn.k_proj", "attn.hook_k", ""),
    ("attn.v", "attn.qkv qkv", "self_attn.v_proj", "attn.hook_v", "Vcur"),
    ("attn.q", "", "", "attn.q.hook_out", ""),
    ("attn.k", "", "", "attn.k.hook_out", ""),
    ("attn.v", "", "", "attn.v.hook_out", ""),
    # llama.cpp has one name for q and k before and after the rotation; a dump holds the last.
    ("attn.q_rope", "attn.rope.0 T,K,G,C", "", "attn.hook_rot_q", "Qcur"),
    ("attn.k_rope", "attn.rope.1", "", "attn.hook_rot_k", "Kcur"),
    ("attn.weights", "", "self_attn.attn_weights", "attn.hook_pattern", "kq_soft_max KG,T,S.."),
    ("attn.mix", "attn.out.input", "self_attn.o_proj.input", "attn.hook_z", "kqv_out"),
    ("attn.mix", "", "", "attn.o.hook_in", ""),
    ("attn.out", "attn.out", "self_attn", "hook_attn_out", "attn_out"),
    ("attn.out", "", "self_attn.o_proj", "attn.hook_out", ""),
    ("attn.residual", "attn", "post_attention_layernorm.input", "hook_resid_mid", "ffn_inp"),
    ("attn.residual", "mlp.input", "", "", ""),
    ("mlp.norm", "mlp.norm", "post_attention_layernorm", "", "attn_post_norm"),
    ("mlp.norm", "mlp.gate.input", "mlp.input", "ln2.hook_out", ""),
    ("mlp.router_logits", "mlp.gate", "mlp.router", "mlp.router.hook_out", "ffn_moe_logits_biased"),
    ("mlp.router_logits", "", "mlp.router.0", "", ""),
    ("mlp.expert_indices", "", "mlp.router.2", "mlp.hook_expert_indices", "ffn_moe_topk"),
    ("mlp.expert_weights", "", "mlp.router.1", "", "ffn_moe_weights_softmax"),
    ("mlp.expert_weights", "", "", "mlp.hook_expert_weights dense", ""),
    ("mlp.gate_up", "", "", "", "ffn_moe_gate_biased gate"),
    ("mlp.gate_up", "", "", "", "ffn_moe_up_biased up"),
    ("mlp.swiglu", "", "", "", "ffn_moe_swiglu_oai"),
    ("mlp.expert_out", "", "", "", "ffn_moe_down_biased"),
    ("mlp.out", "", "mlp.experts", "hook_mlp_out", "ffn_moe_out"),
    ("mlp.out", "", "mlp", "mlp.hook_out", ""),
    ("mlp.residual", "mlp", "", "hook_resid_post", "l_out"),
)  # fmt: skip
# tap point | OpenAI torch | transformers | TransformerLens | llama.cpp
_MODEL = (
    ("embedding", "embedding", "model.embed_tokens", "hook_embed", "embd"),
    ("embedding", "", "hidden_states.0", "blocks.0.hook_resid_pre", ""),
    ("embedding", "", "", "embed.hook_out", ""),
    ("norm", "norm", "model.norm", "ln_final.hook_out", "result_norm"),
    ("norm", "unembedding.input", "lm_head.input", "unembed.hook_in", ""),
    ("logits", "unembedding", "lm_head", "unembed.hook_out", "result_output"),
    ("logits", "", "logits", "", ""),
)
# tap point of block N | the whole name
_WHOLE = (
    ("mlp.residual", "openai", "block.{n}"),
    ("mlp.residual", "transformers", "model.layers.{n}"),
    ("attn.weights", "transformers", "attentions.{n}"),
    ("mlp.router_logits", "transformers", "router_logits.{n}"),
)
_BLOCK_NAMES = {
    "openai": "block.{n}.",
    "transformers": "model.layers.{n}.",
    "transformer_lens": "blocks.{n}.",
    "llama_cpp": "",
}

# Well-known names that are not tap points, and why.
_NOT_A_TAP = (
    (r"hook_normalized$", "it is the norm before its scale is multiplied in"),
    (r"hook_scale$", "it is the norm's divisor"),
    (
        r"(^|[._])(attn|attention|qk)[._]?(scores|logits)$",
        "it is attention before the softmax: take the weights after it, attn.weights, or its "
        "inputs, attn.q_rope and attn.k_rope",
    ),
    (r"^ffn_moe_logits-\d+$", "it lacks the router's bias: take ffn_moe_logits_biased"),
    (r"^ffn_moe_(gate|up|down)-\d+$", "it lacks the bias: take the name that ends in _biased"),
    (r"^(wqkv|wqkv_b)-\d+$", "take Qcur, Kcur and Vcur"),
)
# Prefixes that wrappers add to a module's name.
_WRAPPERS = re.compile(
    r"^(?:module|base_model\.model)\.|\.module$|"  # DataParallel; PEFT
    r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|"  # torch
    r"\.(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|original_module|base_layer)$|"
    r"(?<=\.)(?:base_layer|original_module)\."  # PEFT
)


@dataclass(frozen=True)
class Meaning:
    """The meaning of a foreign name.

    Attributes:
        tap: the tap point.
        layout: ``""`` (one of the tap point's usual forms), a form, or one of the words above.
        dialect: the implementation that uses the name; ``"gptoss_ref"`` for this package.
    """

    tap: str
    layout: str = ""
    dialect: str = "gptoss_ref"


def table(config: ModelConfig) -> Iterator[tuple[str, Meaning]]:
    """Every foreign name of a model and its meaning; fused arrays appear several times."""
    layers = config.num_hidden_layers
    for tap, *foreign in _MODEL:
        for dialect, name in zip(DIALECTS, foreign, strict=True):
            if name:
                yield name, Meaning(tap, dialect=dialect)
    for n in range(layers):
        for stage, *foreign in _BLOCK:
            for dialect, entry in zip(DIALECTS, foreign, strict=True):
                name, _, layout = entry.partition(" ")
                if name:
                    before = _BLOCK_NAMES[dialect].format(n=n)
                    after = f"-{n}" if dialect == "llama_cpp" else ""
                    meaning = Meaning(f"block.{n}.{stage}", layout.replace(",", " "), dialect)
                    yield before + name + after, meaning
        for stage, dialect, name in _WHOLE:
            yield name.format(n=n), Meaning(f"block.{n}.{stage}", dialect=dialect)
        # a block's input is the output of the one before; the last of hidden_states is the norm
        before = "embedding" if n == 0 else f"block.{n - 1}.mlp.residual"
        for dialect, name in (("openai", f"block.{n}"), ("transformers", f"model.layers.{n}")):
            yield f"{name}.input", Meaning(before, dialect=dialect)
        if n:
            yield f"blocks.{n}.hook_resid_pre", Meaning(before, dialect="transformer_lens")
            yield f"hidden_states.{n}", Meaning(before, dialect="transformers")
    yield f"hidden_states.{layers}", Meaning("norm", dialect="transformers")


def lookup(config: ModelConfig) -> dict[str, tuple[Meaning, ...]]:
    """Name -> its meanings, including this package's names.

    Names that are used on both sides, such as ``block.0.attn.norm``, mean the same.

    >>> from gptoss_ref.config import GPT_OSS_20B
    >>> [m.tap for m in lookup(GPT_OSS_20B)["model.layers.3.self_attn.o_proj.input"]]
    ['block.3.attn.mix']
    """
    found: dict[str, tuple[Meaning, ...]] = {name: (Meaning(name),) for name in taps.names(config)}
    own = set(found)
    for name, meaning in table(config):
        if name not in own:
            found[name] = (*found.get(name, ()), meaning)
    return found


def bare(name: str) -> str:
    """A name without the additions of wrappers, ``.output`` and llama.cpp's views.

    >>> bare("_orig_mod.model.norm.output"), bare("Vcur-0 (reshaped)")
    ('model.norm', 'Vcur-0')
    >>> bare("base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.base_layer")
    'model.layers.0.self_attn.q_proj'
    """
    short = re.sub(r" \([a-z ]*\)$", "", name.removesuffix(".output"))
    while (inner := _WRAPPERS.sub("", short)) != short:
        short = inner
    return short


def meanings(name: str, known: Mapping[str, tuple[Meaning, ...]]) -> tuple[Meaning, ...] | None:
    """The meanings of a name; None if it is unknown.

    Args:
        name: in any dialect.
        known: from :func:`lookup`.

    Raises:
        TraceError: the name is known, but is not a tap point.
    """
    for candidate in (name, short := bare(name)):
        if candidate in known:
            return known[candidate]
    for pattern, reason in _NOT_A_TAP:
        if re.search(pattern, short):
            raise TraceError(f"{name!r} is not a tap point: {reason}")
    return None


def foreign_names(tap: str, dialect: str, config: ModelConfig) -> list[str]:
    """The names of a tap point in one of DIALECTS; may be empty."""
    return [n for n, m in table(config) if m.tap == tap and m.dialect == dialect]
