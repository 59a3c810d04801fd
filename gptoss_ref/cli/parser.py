"""The options of every command. The commands are imported when they run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any

import gptoss_ref
from gptoss_ref.cli.harmony_options import add_verbs
from gptoss_ref.cli.help import HelpFormatter, examples
from gptoss_ref.cli.options import (
    MODEL_HELP,
    Parser,
    add_backend_options,
    add_choice_options,
    add_download_option,
    add_json_option,
    add_model_options,
    add_prompt_options,
    add_sampling_options,
    file_name,
    megabytes,
    ranges,
    seconds,
    seed,
    width,
)

Run = Callable[[argparse.Namespace], int]


def build_parser() -> Parser:
    """The parser; the attribute `run` of parsed arguments is the command's function."""
    parser = Parser(
        prog="gptoss-ref",
        description="The gpt-oss language models: chat with them, look into them, convert them.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {gptoss_ref.__version__}")

    def print_help(_: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(run=print_help)
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for add in (
        _add_chat,
        _add_generate,
        _add_info,
        _add_convert,
        _add_selfcheck,
        _add_vectors,
        _add_check,
        _add_warmup,
        _add_doctor,
        _add_trace,
        _add_compare,
        _add_diagnose,
        _add_inspect,
        _add_harmony,
        _add_train,
        _add_tokens,
    ):
        add(commands)
    return parser


def _add_chat(commands: Any) -> None:
    command = _command(commands, "chat", "talk with a model in the Harmony format")
    command.add_argument("message", nargs="?", metavar="MESSAGE", help="default: a prompt loop")
    add_model_options(command)
    command.add_argument(
        "--reasoning", default="medium", metavar="low|medium|high", help="reasoning effort"
    )
    command.add_argument("--instructions", metavar="TEXT", help="the developer message")
    command.add_argument(
        "--tools", metavar="FILE", help="JSON list of function tools: name, description, parameters"
    )
    command.add_argument("--date", metavar="YYYY-MM-DD", help="current date in the system message")
    add_sampling_options(command, max_tokens=1024)
    add_json_option(command)


def _add_generate(commands: Any) -> None:
    command = _command(commands, "generate", "continue a text, without the chat format")
    command.add_argument("prompt", metavar="PROMPT")
    add_model_options(command)
    add_sampling_options(command, max_tokens=64)
    add_json_option(command)


def _add_info(commands: Any) -> None:
    command = _command(commands, "info", "show a configuration and count its parameters")
    command.add_argument(
        "model", nargs="?", default="tiny", metavar="MODEL", help=f"20b, 120b, {MODEL_HELP}"
    )
    add_download_option(command)
    add_json_option(command)


def _add_convert(commands: Any) -> None:
    command = _command(commands, "convert", "write a checkpoint in another layout")
    command.add_argument("source", metavar="SRC", help=MODEL_HELP)
    command.add_argument("target", metavar="DST", help="a new folder")
    command.add_argument(
        "--adapter", metavar="DIR", help="merge this adapter (PEFT's files); SRC may also be one"
    )
    command.add_argument("--layout", choices=["hf", "openai"], help="default: that of SRC")
    command.add_argument("--experts", choices=["mxfp4", "bfloat16"], help="default: those of SRC")
    add_download_option(command)
    add_json_option(command)


def _add_selfcheck(commands: Any) -> None:
    command = _command(commands, "selfcheck", "compare the released weights with published outputs")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_download_option(command)
    add_backend_options(command)
    add_json_option(command)


def _add_vectors(commands: Any) -> None:
    command = _command(commands, "vectors", "write conformance test vectors, or judge your results")
    command.add_argument("folder", metavar="DIR", help="a new folder; with --check: your results")
    command.add_argument("--check", action="store_true", help="judge the results in DIR")
    command.add_argument(
        "--precision",
        metavar="NAME",
        help="with --check: that of your implementation, float32 (the default) or bfloat16",
    )
    add_json_option(command)


def _add_check(commands: Any) -> None:
    command = _command(commands, "check", "test your own function on the conformance vectors")
    command.add_argument(
        "function", nargs="?", metavar="FILE.py:FUNCTION", help="default: list the operations"
    )
    command.add_argument(
        "operation", nargs="?", metavar="OPERATION", help="what the function computes"
    )
    add_json_option(command)


def _add_warmup(commands: Any) -> None:
    command = _command(commands, "warmup", "compile the kernels now, not in a later command")
    command.add_argument(
        "--width",
        type=width,
        metavar="N",
        help="only those of a model of this width, the smaller of its hidden and intermediate "
        "sizes (2880 for the released models; default: of all models)",
    )
    add_json_option(command)


def _add_doctor(commands: Any) -> None:
    command = _command(commands, "doctor", "show processor, kernels and memory speed")
    command.add_argument(
        "--megabytes",
        type=megabytes,
        default=1024,
        metavar="N",
        help="size of the memory test: larger than the caches, at least 64",
    )
    add_json_option(command)


def _add_trace(commands: Any) -> None:
    command = _command(commands, "trace", "write the arrays of all tap points of a pass to a file")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "-o", "--output", type=file_name, required=True, metavar="FILE", help="the trace"
    )
    prompt = command.add_mutually_exclusive_group(required=True)
    add_prompt_options(command, prompt, "the text")
    command.add_argument(
        "--taps",
        action="append",
        metavar="PATTERN",
        help="write only these, such as '*.residual'; may be repeated",
    )
    add_download_option(command)
    add_backend_options(command)
    add_json_option(command)


def _add_compare(commands: Any) -> None:
    command = _command(commands, "compare", "find the first tap point at which two traces diverge")
    command.add_argument("ref", metavar="REF", help="a trace of this package, best in float64")
    command.add_argument(
        "other", metavar="OTHER", help="a trace, or .npz, .npy or .safetensors arrays"
    )
    command.add_argument(
        "--model", metavar="MODEL", help="the model of REF, to measure what rounding explains"
    )
    add_download_option(command)
    command.add_argument(
        "--rounding", metavar="NAME", help="of OTHER: float64, float32, bfloat16 or float16"
    )
    command.add_argument(
        "--html", type=file_name, metavar="FILE", help="also write a page with a plot"
    )
    command.add_argument("--verbose", action="store_true", help="list every tap point")
    add_json_option(command)


def _add_diagnose(commands: Any) -> None:
    command = _command(commands, "diagnose", "name the bug that explains another program's numbers")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "other",
        nargs="*",
        metavar="OTHER",
        help="a trace, or .npz, .npy or .safetensors arrays; several files of one run in order, "
        "such as prefill and decoding steps; '-' reads one from stdin",
    )
    command.add_argument(
        "--endpoint", metavar="URL", help="instead of OTHER: an OpenAI-compatible server"
    )
    prompt = command.add_mutually_exclusive_group()
    add_prompt_options(command, prompt, "for a server, or a file without tokens")
    command.add_argument(
        "--names",
        metavar="FILE",
        help="JSON object: each name in OTHER, and its tap point or [tap point, axes]; "
        "{n} in both is the number of each block",
    )
    command.add_argument(
        "--positions",
        type=ranges,
        metavar="RANGES",
        help="positions of arrays with only some rows, such as 0-9,12,-1",
    )
    command.add_argument(
        "--skip-unknown",
        action="store_true",
        help="leave out, and list, arrays that fit no tap point",
    )
    command.add_argument(
        "--taps", action="append", metavar="PATTERN", help="judge only these; may be repeated"
    )
    command.add_argument(
        "--layers", type=ranges, metavar="RANGES", help="judge only these blocks, such as 0-3"
    )
    command.add_argument(
        "--rounding", metavar="NAME", help="of OTHER: float64, float32, bfloat16 or float16"
    )
    command.add_argument("--served-model", metavar="NAME", help="its name on the server")
    command.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="S", help="seconds for each answer"
    )
    command.add_argument(
        "--api-key-env", metavar="VARIABLE", help="environment variable that holds the server's key"
    )
    command.add_argument(
        "--html", type=file_name, metavar="FILE", help="also write a page with a plot"
    )
    command.add_argument("--verbose", action="store_true", help="list every tap point")
    add_download_option(command)
    add_json_option(command)


def _add_inspect(commands: Any) -> None:
    command = _command(commands, "inspect", "write an HTML page that shows the pass of a prompt")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("prompt", metavar="PROMPT", help="the user's message in a Harmony chat")
    command.add_argument(
        "-o", "--output", type=file_name, required=True, metavar="FILE", help="the page, HTML"
    )
    command.add_argument("--raw", action="store_true", help="PROMPT without the chat format")
    command.add_argument(
        "--reasoning", metavar="low|medium|high", help="reasoning effort; default: medium"
    )
    command.add_argument("--instructions", metavar="TEXT", help="the developer message")
    command.add_argument(
        "--tools", metavar="FILE", help="JSON list of function tools: name, description, parameters"
    )
    command.add_argument(
        "--generate", type=int, default=0, metavar="N", help="also inspect N tokens of the reply"
    )
    add_choice_options(command)
    add_download_option(command)
    add_backend_options(command)
    add_json_option(command)


def _add_harmony(commands: Any) -> None:
    summary = "render, parse, compare and check Harmony prompts"
    add_verbs(_command(commands, "harmony", summary))


def _add_train(commands: Any) -> None:
    command = _command(commands, "train", "train a LoRA adapter, or whole weights, without torch")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("data", metavar="DATA.jsonl", help="a conversation or text on each line")
    command.add_argument(
        "-o", "--output", type=file_name, required=True, metavar="OUT", help="folder of the run"
    )
    command.add_argument("--held-out", metavar="FILE", help="data for the evaluation")
    command.add_argument("--resume", action="store_true", help="continue the run in OUT")
    command.add_argument("--plot", metavar="FILE", help="write a plot of the loss (extra: viz)")
    for names, kind, default, letter, text in (
        (("--steps",), int, None, "N", "optimiser steps; default: those of --epochs"),
        (("--epochs",), float, 1.0, "X", "passes over the data"),
        (("--batch",), int, 16, "N", "examples per step"),
        (("--accumulation",), int, 1, "N", "parts of a batch, computed in turn to save memory"),
        (("--rate",), float, 1e-3, "R", "peak learning rate"),
        (("--warmup",), int, 0, "N", "steps in which the rate rises"),
        (("--weight-decay",), float, 0.0, "R", "weight decay of AdamW"),
        (("--clip",), float, 1.0, "R", "largest gradient norm; 0: no limit"),
        (("--router-aux-loss-coef",), float, 0.0, "R", "coefficient of the load-balancing loss"),
        (("--rank",), int, 8, "N", "rank of LoRA; 0: no LoRA, only --whole"),
        (("--alpha",), float, 16.0, "R", "alpha of LoRA; its scale is alpha / rank"),
        (("--evaluate-every",), int, 0, "N", "steps between evaluations; 0: before and after"),
        (("--save-every",), int, 0, "N", "steps between saves; 0: at the end, Ctrl-C or SIGTERM"),
    ):
        command.add_argument(*names, type=kind, default=default, metavar=letter, help=text)
    command.add_argument(
        "--schedule", default="cosine", metavar="NAME", help="constant, linear, cosine or wsd"
    )
    command.add_argument(
        "--targets",
        nargs="+",
        default=["*.attn.*"],
        metavar="PATTERN",
        help="matrices with low-rank factors (default: those of attention)",
    )
    command.add_argument(
        "--whole", nargs="+", default=[], metavar="PATTERN", help="weights to train without LoRA"
    )
    command.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of the factors and of the order"
    )
    add_download_option(command)
    add_backend_options(command)
    add_json_option(command)


def _add_tokens(commands: Any) -> None:
    command = _command(commands, "tokens", "print the token ids of a text")
    command.add_argument("text", metavar="TEXT", help="the text; '-' reads it from stdin")
    command.add_argument("--chat", action="store_true", help="TEXT is the user's message in a chat")
    command.add_argument("--model", default="tiny", metavar="MODEL", help=MODEL_HELP)
    add_download_option(command)
    add_json_option(command)


def _command(commands: Any, name: str, summary: str) -> Parser:
    command: Parser = commands.add_parser(
        name,
        help=summary,
        description=f"{name}: {summary}.",
        epilog=examples(name),
        formatter_class=HelpFormatter,
    )
    command.set_defaults(run=_deferred(name))
    return command


def _deferred(name: str) -> Run:
    def run(args: argparse.Namespace) -> int:
        status: int = import_module(f"gptoss_ref.cli.{name}").run(args)
        return status

    return run
