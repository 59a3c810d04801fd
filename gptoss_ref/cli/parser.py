"""The options of every command. Commands themselves are imported when they run."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import gptoss_ref
from gptoss_ref.cli.help import HelpFormatter, examples, nearest, plainer
from gptoss_ref.errors import GptOssError

Run = Callable[[argparse.Namespace], int]

MODEL_HELP = (
    "'tiny' (the bundled model), 'released-constants' or 'other-constants' (random weights), a "
    "folder, or a Hub id in the local Hugging Face cache"
)


class UsageError(GptOssError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """Reports a bad command line as every other bad input is reported: in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{plainer(message)} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """An option that a command does not have is an error that names the nearest one."""
        if self._subparsers is None:
            known = self._option_string_actions
            for word in itertools.takewhile(lambda word: word != "--", args or ()):
                name = word.split("=")[0]
                if name.startswith("--") and not any(o.startswith(name) for o in known):
                    self.error(f"unknown option {name}{nearest(name, known)}")
        return super().parse_known_args(args, namespace)


def build_parser() -> Parser:
    """The parser; parsed arguments carry the command's function as `run`."""
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
    command.add_argument("message", nargs="?", metavar="MESSAGE", help="without it: a prompt loop")
    _add_model_options(command)
    command.add_argument("--reasoning", default="medium", metavar="low|medium|high", help="effort")
    command.add_argument("--instructions", metavar="TEXT", help="the developer message")
    command.add_argument(
        "--tools", metavar="FILE", help="JSON list of function tools: name, description, parameters"
    )
    command.add_argument("--date", metavar="YYYY-MM-DD", help="current date in the system message")
    _add_sampling_options(command, max_tokens=1024)
    _add_json_option(command)


def _add_generate(commands: Any) -> None:
    command = _command(commands, "generate", "continue a text, with no chat format around it")
    command.add_argument("prompt", metavar="PROMPT")
    _add_model_options(command)
    _add_sampling_options(command, max_tokens=64)
    _add_json_option(command)


def _add_info(commands: Any) -> None:
    command = _command(commands, "info", "show a configuration and count its parameters")
    command.add_argument(
        "model", nargs="?", default="tiny", metavar="MODEL", help=f"20b, 120b, {MODEL_HELP}"
    )
    _add_download_option(command)
    _add_json_option(command)


def _add_convert(commands: Any) -> None:
    command = _command(commands, "convert", "write a checkpoint in another layout")
    command.add_argument("source", metavar="SRC", help=MODEL_HELP)
    command.add_argument("target", metavar="DST", help="a new folder")
    command.add_argument(
        "--adapter", metavar="DIR", help="merge this adapter (PEFT's files); SRC may also be one"
    )
    command.add_argument("--layout", choices=["hf", "openai"], help="default: that of SRC")
    command.add_argument("--experts", choices=["mxfp4", "bfloat16"], help="default: those of SRC")
    _add_download_option(command)
    _add_json_option(command)


def _add_selfcheck(commands: Any) -> None:
    command = _command(commands, "selfcheck", "compare the released weights with published figures")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    _add_download_option(command)
    _add_backend_options(command)
    _add_json_option(command)


def _add_vectors(commands: Any) -> None:
    command = _command(commands, "vectors", "write the conformance vectors, or judge your results")
    command.add_argument("folder", metavar="DIR", help="a new folder; with --check, your results")
    command.add_argument("--check", action="store_true", help="judge the results in DIR")
    command.add_argument(
        "--precision", metavar="NAME", help="yours, with --check: float32 (the default) or bfloat16"
    )
    _add_json_option(command)


def _add_check(commands: Any) -> None:
    command = _command(commands, "check", "try a function of your own on the conformance vectors")
    command.add_argument("function", nargs="?", metavar="FILE.py:FUNCTION")
    command.add_argument(
        "operation", nargs="?", metavar="OPERATION", help="without both: list the operations"
    )
    _add_json_option(command)


def _add_warmup(commands: Any) -> None:
    command = _command(commands, "warmup", "compile the kernels now, so that nothing does later")
    _add_json_option(command)


def _add_doctor(commands: Any) -> None:
    command = _command(commands, "doctor", "show what this machine gives the kernels")
    command.add_argument(
        "--megabytes",
        type=_megabytes,
        default=1024,
        metavar="N",
        help="read at a time to measure the memory: more than the caches hold, 64 at least",
    )
    _add_json_option(command)


def _add_trace(commands: Any) -> None:
    command = _command(commands, "trace", "write what a model computes at every tap point")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "-o", "--output", type=_file_name, required=True, metavar="FILE", help="the trace"
    )
    prompt = command.add_mutually_exclusive_group(required=True)
    _add_prompt_options(command, prompt, "the text")
    command.add_argument(
        "--taps", action="append", metavar="PATTERN", help="such as '*.residual'; may be repeated"
    )
    _add_download_option(command)
    _add_backend_options(command)
    _add_json_option(command)


def _add_compare(commands: Any) -> None:
    command = _command(commands, "compare", "find the first tap point at which two traces part")
    command.add_argument("ref", metavar="REF", help="a trace of this package, best in float64")
    command.add_argument("other", metavar="OTHER", help="a trace, or .npz or .safetensors arrays")
    command.add_argument(
        "--model", metavar="MODEL", help="that made REF, to measure what rounding explains"
    )
    _add_download_option(command)
    command.add_argument(
        "--rounding", metavar="NAME", help="of OTHER: float64, float32, bfloat16 or float16"
    )
    command.add_argument(
        "--html", type=_file_name, metavar="FILE", help="also write a page with a plot"
    )
    command.add_argument("--verbose", action="store_true", help="list every tap point")
    _add_json_option(command)


def _add_diagnose(commands: Any) -> None:
    command = _command(commands, "diagnose", "name the bug that explains somebody else's numbers")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "other",
        nargs="*",
        metavar="OTHER",
        help="a trace, or .npz, .npy or .safetensors arrays; several files of one run in order, "
        "such as prefill and decoding steps; '-' reads one from stdin",
    )
    command.add_argument(
        "--endpoint", metavar="URL", help="instead: an OpenAI-compatible server of the model"
    )
    prompt = command.add_mutually_exclusive_group()
    _add_prompt_options(command, prompt, "for a server, or a file without tokens")
    command.add_argument(
        "--names",
        metavar="FILE",
        help="JSON object: a name in OTHER and the tap point it stands for, or [tap point, axes]; "
        "{n} in both is the number of each block",
    )
    command.add_argument(
        "--positions",
        type=_ranges,
        metavar="RANGES",
        help="of arrays that hold some rows only, such as 0-9,12,-1",
    )
    command.add_argument(
        "--skip-unknown",
        action="store_true",
        help="leave out arrays that have no place, and say so",
    )
    command.add_argument(
        "--taps", action="append", metavar="PATTERN", help="judge only these; may be repeated"
    )
    command.add_argument(
        "--layers", type=_ranges, metavar="RANGES", help="judge only these blocks, such as 0-3"
    )
    command.add_argument(
        "--rounding", metavar="NAME", help="of OTHER: float64, float32, bfloat16 or float16"
    )
    command.add_argument("--served-model", metavar="NAME", help="its name on the server")
    command.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="seconds for each answer"
    )
    command.add_argument(
        "--api-key-env", metavar="VARIABLE", help="environment variable that holds the server's key"
    )
    command.add_argument(
        "--html", type=_file_name, metavar="FILE", help="also write a page with a plot"
    )
    command.add_argument("--verbose", action="store_true", help="list every tap point")
    _add_download_option(command)
    _add_json_option(command)


def _add_inspect(commands: Any) -> None:
    command = _command(commands, "inspect", "write one page to look inside the pass of a prompt")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("prompt", metavar="PROMPT", help="what the user says in a Harmony chat")
    command.add_argument(
        "-o", "--output", type=_file_name, required=True, metavar="FILE", help="the page, HTML"
    )
    command.add_argument("--raw", action="store_true", help="PROMPT with no chat around it")
    command.add_argument("--reasoning", metavar="low|medium|high", help="effort; default: medium")
    command.add_argument("--instructions", metavar="TEXT", help="the developer message")
    command.add_argument(
        "--tools", metavar="FILE", help="JSON list of function tools: name, description, parameters"
    )
    command.add_argument(
        "--generate", type=int, default=0, metavar="N", help="also inspect N tokens of the reply"
    )
    _add_choice_options(command)
    _add_download_option(command)
    _add_backend_options(command)
    _add_json_option(command)


def _add_harmony(commands: Any) -> None:
    command = _command(commands, "harmony", "render, parse, compare and check Harmony prompts")
    verbs = command.add_subparsers(metavar="VERB", required=True, parser_class=Parser, dest="verb")

    def verb(name: str, summary: str) -> Parser:
        made: Parser = verbs.add_parser(name, help=summary, description=f"{name}: {summary}.")
        return made

    render = verb("render", "a conversation as the prompt that the model reads")
    render.add_argument(
        "conversation", metavar="CONVERSATION.json", help="chat or Harmony messages"
    )
    render.add_argument("--ids", action="store_true", help="print token ids")
    render.add_argument("--training", action="store_true", help="no prompt at the end, <|return|>")
    parse = verb("parse", "token ids or text as messages")
    parse.add_argument(
        "file", type=_file_name, metavar="FILE", help="token ids or text; - for stdin"
    )
    parse.add_argument("--role", metavar="ROLE", help="whose message it begins in the middle of")
    parse.add_argument("--strict", action="store_true", help="refuse what is not by the format")
    diff = verb("diff", "two renderings token by token")
    diff.add_argument("first", type=_file_name, metavar="A", help="token ids or text")
    diff.add_argument("second", type=_file_name, metavar="B", help="token ids or text")
    check = verb("check", "name the bug in a rendering, a chat template or a server")
    check.add_argument("conversation", nargs="?", metavar="CONVERSATION.json")
    check.add_argument(
        "rendered", nargs="?", metavar="RENDERED", help="somebody's ids or text of it"
    )
    source = check.add_mutually_exclusive_group()
    source.add_argument("--template", metavar="FILE", help="a Jinja chat template (extra: verify)")
    source.add_argument("--server", metavar="URL", help="a running server")
    check.add_argument(
        "--live", action="store_true", help="with --server: ask the model, and check its answers"
    )
    check.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="check this transformers tokenizer's folder; or whose ids --server and RENDERED have",
    )
    check.add_argument("--training", action="store_true", help="RENDERED is a training example")
    check.add_argument("--served-model", metavar="NAME", help="its name on the server")
    check.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="seconds for each answer"
    )
    check.add_argument(
        "--api-key-env", metavar="VARIABLE", help="environment variable that holds the server's key"
    )
    for one in (render, parse, diff, check):
        _add_json_option(one)


def _add_train(commands: Any) -> None:
    command = _command(commands, "train", "train a LoRA adapter, or whole weights, without torch")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("data", metavar="DATA.jsonl", help="a conversation or a text a line")
    command.add_argument(
        "-o", "--output", type=_file_name, required=True, metavar="OUT", help="folder of the run"
    )
    command.add_argument("--held-out", metavar="FILE", help="lines like DATA's, to evaluate on")
    command.add_argument("--resume", action="store_true", help="go on with the run in OUT")
    command.add_argument("--plot", metavar="FILE", help="picture of the loss (extra: viz)")
    for names, kind, default, letter, text in (
        (("--steps",), int, None, "N", "of the optimiser; without it, --epochs says how many"),
        (("--epochs",), float, 1.0, "X", "passes over the data"),
        (("--batch",), int, 16, "N", "examples a step"),
        (("--accumulation",), int, 1, "N", "parts that a batch is computed in, to save memory"),
        (("--rate",), float, 1e-3, "R", "learning rate at its peak"),
        (("--warmup",), int, 0, "N", "steps in which the rate rises"),
        (("--weight-decay",), float, 0.0, "R", "of AdamW"),
        (("--clip",), float, 1.0, "R", "longest gradient; 0: any"),
        (("--router-aux-loss-coef",), float, 0.0, "R", "of the load-balancing loss"),
        (("--rank",), int, 8, "N", "of LoRA; 0: none, only --whole"),
        (("--alpha",), float, 16.0, "R", "of LoRA: its scale is alpha / rank"),
        (("--evaluate-every",), int, 0, "N", "steps; 0: before and after"),
        (("--save-every",), int, 0, "N", "steps; 0: at the end, and at Ctrl-C"),
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
        help="matrices that get low-rank factors (default: those of attention)",
    )
    command.add_argument(
        "--whole", nargs="+", default=[], metavar="PATTERN", help="weights to train as they are"
    )
    command.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of the factors and of the order"
    )
    _add_download_option(command)
    _add_backend_options(command)
    _add_json_option(command)


def _add_tokens(commands: Any) -> None:
    command = _command(commands, "tokens", "print the token ids of a text")
    command.add_argument("text", metavar="TEXT", help="the text; '-' reads it from stdin")
    command.add_argument("--chat", action="store_true", help="TEXT as a user says it in a chat")
    command.add_argument("--model", default="tiny", metavar="MODEL", help=MODEL_HELP)
    _add_download_option(command)
    _add_json_option(command)


def _add_prompt_options(command: Parser, prompt: Any, purpose: str) -> None:
    prompt.add_argument("--prompt", metavar="TEXT", help=purpose)
    prompt.add_argument(
        "--tokens",
        type=_token_ids,
        metavar="IDS",
        help="such as 17,4,250, or @FILE that holds them",
    )
    command.add_argument(
        "--chat", action="store_true", help="the prompt as a user says it in a Harmony chat"
    )


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


def _add_model_options(command: Parser) -> None:
    command.add_argument("--model", default="tiny", metavar="MODEL", help=MODEL_HELP)
    _add_download_option(command)
    _add_backend_options(command)


def _add_download_option(command: Parser) -> None:
    command.add_argument(
        "--download", action="store_true", help="fetch a Hub id into the cache (extra: hub)"
    )


def _add_backend_options(command: Parser) -> None:
    command.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="numba (the compiled kernels), numpy (the specification), or auto: the kernels, but "
        "for a small model the specification while no kernels are compiled",
    )
    command.add_argument(
        "--policy", default="float32", metavar="NAME", help="float64, float32 or bfloat16"
    )


def _add_sampling_options(command: Parser, *, max_tokens: int) -> None:
    _add_choice_options(command)
    command.add_argument(
        "--max-tokens", type=int, default=max_tokens, metavar="N", help="at most so many new tokens"
    )


def _add_choice_options(command: Parser) -> None:
    command.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: greedy")
    command.add_argument("--top-k", type=int, default=0, metavar="K", help="0: all")
    command.add_argument("--top-p", type=float, default=1.0, metavar="P", help="1: all")
    command.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the sampling")


def _add_json_option(command: Parser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _file_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file, not ''")
    return text


def _megabytes(text: str) -> int:
    if not _whole(text) or int(text) < 64:  # kernels.doctor.LEAST_MEGABYTES, not imported here
        raise argparse.ArgumentTypeError(f"expected an integer of 64 or more, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, not {text!r}")
    return seconds


def _seed(text: str) -> int:
    if not _whole(text):
        raise argparse.ArgumentTypeError(f"expected an integer of 0 or more, not {text!r}")
    return int(text)


def _token_ids(text: str) -> list[int]:
    """Ids out of a list, or out of a file of one, which may be JSON."""
    listed = text
    if text.startswith("@"):
        try:
            listed = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise argparse.ArgumentTypeError(f"{text[1:]}: {reason}") from None
    ids = listed.translate(str.maketrans(",[]", "   ")).split()
    if not ids or not all(map(_whole, ids)):
        raise argparse.ArgumentTypeError(f"expected token ids such as 17,4,250, not {text!r}")
    return [int(part) for part in ids]


def _ranges(text: str) -> list[int]:
    """Integers out of ranges such as 0-9,12,-1."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,9})-(\d{1,9})|(-?\d{1,9})", part.strip())
        if found is None or (found[1] and int(found[2]) < int(found[1])):
            raise argparse.ArgumentTypeError(f"expected numbers such as 0-9,12, not {text!r}")
        begin, end = (found[1], found[2]) if found[1] else (found[3], found[3])
        if int(end) - int(begin) > 10**6:
            raise argparse.ArgumentTypeError(f"expected a range of at most a million, not {part!r}")
        numbers += range(int(begin), int(end) + 1)
    return numbers


def _whole(text: str) -> bool:
    """Whether it is a number without sign that Python converts: of at most 4300 digits."""
    return text.isdecimal() and len(text) <= 4300
