"""Why a mutant that no test kills is no gap of the tests."""

from __future__ import annotations

EXACT = "float64 holds every bfloat16 exactly, and `round` gives the policy's own type"
COPIED = "the same values in an array of their own; nothing writes into them"
WIDER = "`None` is float64: computed more exactly and rounded at the end, as the docstring allows"
TILE = "another size or overlap of tiles: some rows are computed again, with the same values"
LAST = "the last of two axes, which is also the default"
MASKED = "only skips keys that no query of the tile sees; `attention_weights` masks them anyway"
EVEN = "C is even: the same numbers, as floats"
UNUSED = "of a block that is not finite, which decodes to NaN whatever its exponent and codes"
NEGATIVE = "NumPy takes any negative size for the unknown one"
MESSAGE = "the default of a name in error messages"
NONE_FALSE = "`None` is false, as `False` is"
NONE_FLOAT64 = "NumPy takes `None` for float64"
HELP = "a text of `--help`"
LENGTHS = "both have one entry for each item, by construction"
CONFIGURED = "a checkpoint that was loaded has a config.json"
HF = "every layout but `openai` and `hf-bfloat16` has the names of `hf`"
RATIO = "all sums change their sign, and only their ratios are used"
FLUSHED = "Linux also flushes a file that is open for reading; Windows does not"
STRICT = "a strict parser raises before it uses the action"
BOUNDED = "a larger shape is refused by its product, larger offsets by the size of the file"
STOPPED = "nothing is fed after it stopped, and later events are of the same message"
BEYOND = "ids from `vocab_size` on are refused before"
NEW_LIST = "`blocks` runs first, and begins a new list"
FIRST = "only the first of them is used"
ASCII = "`json.dumps` writes ASCII"

REASONS: dict[tuple[str, str, str], str] = {
    ("chat/conversation.py", "stream", 'first = ""'): "empty is false, as `None` is",
    ("chat/header.py", "names_a_role", "XXXX"): "no role either",
    ("chat/hf_tokenizer.py", "_byte_table", "256 + 1"): "byte 0 then takes that character",
    ("chat/hf_tokenizer.py", "_byte_table", "0xFF + 2"): "byte 0 then takes that character",
    ("chat/hf_tokenizer.py", "_check_merges", "previous = -2"): "ranks begin at 0",
    ("chat/pack_ranks.py", "main", "help="): HELP,
    ("chat/pack_ranks.py", "main", "description="): HELP,
    ("chat/pack_ranks.py", "main", "prog="): HELP,
    ("chat/pack_ranks.py", "pack", "lzma.compress("): "another packing of the same tokens",
    ("chat/render.py", "_drop_answered", "strict="): LENGTHS,
    ("chat/parser.py", "HarmonyParser._in_between", '<|start|>", None)'): STRICT,
    ("chat/parser.py", "HarmonyParser._in_between", '<|start|>", "XXXX")'): STRICT,
    ("chat/render.py", "developer_text", "sections = ["): "the list is empty there",
    ("chat/render.py", "render_message", 'or "XXXX"'): "a tool's message has a name",
    ("chat/reply.py", "Collector._collect", "hidden = None"): NONE_FALSE,
    ("chat/reply.py", "Collector._collect", "self.stopped = hidden"): STOPPED,
    ("chat/reply.py", "Collector.feed", "cut=None"): NONE_FALSE,
    ("chat/reply.py", "ToolCall.answer", "ensure_ascii=None"): NONE_FALSE,
    ("chat/reply.py", "read_arguments", "ensure_ascii=None"): NONE_FALSE,
    ("chat/tokenizer.py", "Tokenizer.encode", "at = None"): "a slice from `None` begins at 0",
    ("chat/tokenizer.py", "Tokenizer.__init__", "vocab_size + len(tokens)"): BEYOND,
    ("chat/tools.py", "_lines", "StringIO(text, )"): "`\\n` is the default of `StringIO`",
    ("chat/typescript.py", "to_json", "ensure_ascii=None"): NONE_FALSE,
    ("chat/typescript.py", "_float_json", "XX-XX"): "a number holds no X",
    ("chat/unfinished.py", "parse_unfinished", 'else "XXXX"'): "names no channel",
    ("chat/typescript.py", "_float_json", "rpartition"): "the text holds one `e`",
    ("chat/typescript.py", "_float_json", "value <= 0"): "0 is not in this range",
    ("checkpoint/adapter.py", "LowRank.product", "x.astype(dtype or x.dtype"): COPIED,
    (
        "checkpoint/convert.py",
        "convert",
        "max_shard_bytes: int =",
    ): "one byte more in a file of 5 GB",
    ("checkpoint/convert.py", "_config", "(path is not None) or True"): CONFIGURED,
    (
        "checkpoint/convert.py",
        "_Decoder.chunks",
        ">= _FINITE_SCALE",
    ): "the check then finds nothing",
    ("checkpoint/convert.py", "_copied", "reshape(-2"): NEGATIVE,
    ("checkpoint/convert.py", "_target", "XXhfXX"): HF,
    ("checkpoint/convert.py", "_Encoder.blocks", "widen(dense[tile], None)"): NONE_FLOAT64,
    ("checkpoint/convert.py", "_Encoder.__init__", "= None"): NEW_LIST,
    (
        "checkpoint/locate.py",
        "cached",
        'revision = "XXXX"',
    ): "revisions are hashes of commits: none has this name",
    ("checkpoint/peft.py", "_settings", 'get("r", 2)'): "only checked, and both are allowed",
    ("checkpoint/peft.py", "read_adapter", "swapped = None"): NONE_FALSE,
    ("checkpoint/peft.py", "write_adapter", "b.shape[1], -2"): NEGATIVE,
    (
        "checkpoint/shards.py",
        "parse_weight_map",
        "(name, None)",
    ): "the file in the message of an error",
    ("checkpoint/convert.py", "_Encoder.scales", "self._scales = None"): NEW_LIST,
    ("checkpoint/made.py", "write", "places(config, None)"): HF,
    ("checkpoint/made.py", "write", "XXhfXX"): HF,
    ("checkpoint/made.py", "write", "default_rng(21)"): "other weights of the same distribution",
    (
        "checkpoint/made.py",
        "_values",
        "target = 5.0",
    ): "the exponent is rounded to the same integer",
    ("checkpoint/reader.py", "_counts", "0 <= n"): BOUNDED,
    ("checkpoint/summary.py", "_from_config", "XXhfXX"): HF,
    ("checkpoint/summary.py", "describe", "RELEASED, )"): FIRST,
    ("checkpoint/summary.py", "describe", "RELEASED, 2)"): FIRST,
    ("checkpoint/made.py", "_values", "place.shape[+1]"): LAST,
    ("checkpoint/merge.py", "Merger._note", "0.0) - squares"): RATIO,
    ("checkpoint/merge.py", "Merger._pieces", "astype(None)"): NONE_FLOAT64,
    ("checkpoint/merge.py", "Merger.mxfp4", "dtype=None"): NONE_FLOAT64,
    ("checkpoint/merge.py", "Merger.mxfp4", "decode(blocks, scales, )"): "exact in float32, too",
    ("checkpoint/merge.py", "MergedExperts.__init__", "= None"): NEW_LIST,
    ("checkpoint/peft.py", "_settings", '"init_lora_weights", False'): "both are allowed",
    ("checkpoint/peft.py", "write_adapter", "reshape(-2"): NEGATIVE,
    ("checkpoint/writer.py", "write_shards", "strict="): LENGTHS,
    ("checkpoint/writer.py", "write_json", "encoding"): ASCII,
    ("checkpoint/writer.py", "_flush", "XXntXX"): "Windows only",
    ("checkpoint/writer.py", "_flush", "(path.is_dir()) or True"): FLUSHED,
    ("layers/attention.py", "attention", "np.inf if (window is None) or True"): MASKED,
    ("layers/attention.py", "attention", "p.max()) | (p.min()"): MASKED,
    ("layers/attention.py", "attention", "k_positions <= reach)"): MASKED,
    ("layers/attention.py", "attention_mix", "reshape(kv_heads, -2"): NEGATIVE,
    ("layers/attention.py", "attention", "rows = slice(start, start + tile)"): TILE,
    ("layers/attention.py", "attention", "tile = max("): TILE,
    ("layers/attention.py", "*", "astype(None)"): WIDER,
    ("layers/attention.py", "attention_weights", "widen(sinks, None)"): WIDER,
    ("layers/embedding.py", "embedding", "widen(weight[tokens], None)"): EXACT,
    ("layers/experts.py", "expert_linear", "widen(bias, None)"): WIDER,
    ("layers/experts.py", "experts", "mlp1_bias.shape[+1]"): LAST,
    ("layers/experts.py", "experts", "np.zeros((tokens, width)"): WIDER,
    ("layers/linear.py", "dense", "dtype=None,"): WIDER,
    ("layers/linear.py", "dense", "widen(weight, None)"): WIDER,
    ("layers/linear.py", "linear", "widen(bias, None)"): WIDER,
    ("layers/linear.py", "matmul", "rows = slice(start, start + rows_per_tile)"): TILE,
    ("layers/linear.py", "matmul", "rows_per_tile = max("): TILE,
    ("layers/linear.py", "matmul", "x.astype(None, copy=False)"): WIDER,
    ("layers/linear.py", "matmul", "copy=None"): COPIED,
    ("layers/linear.py", "matmul", "copy=True"): COPIED,
    ("layers/linear.py", "matmul", "x.astype(policy.dtype, )"): COPIED,
    ("layers/linear.py", "matmul", "y = np.empty("): WIDER,
    ("layers/mxfp4.py", "decode", "XXMXFP4 scalesXX"): MESSAGE,
    ("layers/mxfp4.py", "decode", "MXFP4_BLOCK / 2"): "16.0 equals 16",
    ("layers/mxfp4.py", "decode", "scales != SCALE_NAN"): "the place in the message of an error",
    ("layers/mxfp4.py", "decode", "_HALF_SCALES.astype(None)"): "powers of two, exact in both",
    ("layers/mxfp4.py", "decode", "half_scales[SCALE_NAN] = None"): "NumPy stores `None` as NaN",
    ("layers/mxfp4.py", "encode", "np.where(finite, largest, 2.0)"): UNUSED,
    ("layers/mxfp4.py", "encode", "largest, 1.0), rule), 1)"): UNUSED,
    ("layers/rmsnorm.py", "rmsnorm", "x.astype(None, copy=False)"): WIDER,
    ("layers/rmsnorm.py", "rmsnorm", "widen(scale, None)"): WIDER,
    ("layers/rmsnorm.py", "rmsnorm", "copy=None"): COPIED,
    ("layers/rmsnorm.py", "rmsnorm", "copy=True"): COPIED,
    ("layers/rmsnorm.py", "rmsnorm", "x.astype(policy.dtype, )"): COPIED,
    ("layers/rmsnorm.py", "rmsnorm", "axis=+1"): LAST,
    ("layers/rope.py", "yarn", "half = head_dim / 2"): EVEN,
    ("layers/router.py", "shares", "axis=+1"): LAST,
    ("layers/router.py", "shares", "np.take_along_axis(logits, indices, )"): LAST,
    ("layers/router.py", "top_k", "axis=+1"): LAST,
    ("layers/router.py", "top_k", 'np.argsort(descending, kind="stable")'): LAST,
    ("layers/swiglu.py", "swiglu", "astype(None)"): WIDER,
    ("numerics.py", "*", "copy=None"): COPIED,
    ("numerics.py", "*", "copy=True"): COPIED,
    ("numerics.py", "*", "astype(dtype, )"): COPIED,
}
"""By the end of the file's name, the function (`*`: any), a part of the old line or the new."""
