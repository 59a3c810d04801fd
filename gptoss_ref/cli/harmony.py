"""`gptoss-ref harmony render|parse|diff|check`: Harmony prompts, without a model."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptoss_ref.chat import HarmonyParser, Tokenizer, o200k_harmony, read_tokenizer_json
from gptoss_ref.cli.console import Screen, output
from gptoss_ref.cli.options import UsageError
from gptoss_ref.errors import HarmonyError
from gptoss_ref.verify.rendering import harmony, read_conversation
from gptoss_ref.verify.rendering.check import MAX_RENDERED
from gptoss_ref.verify.rendering.conversation import MAX_BYTES
from gptoss_ref.verify.rendering.pieces import Mark, Pieces, from_ids, from_text, text_of, to_ids
from gptoss_ref.verify.rendering.rules import SPECIFICATION
from gptoss_ref.verify.rendering.server import check_server
from gptoss_ref.verify.rendering.template import check_template_file, check_tokenizer_folder

_IDS = re.compile(r"\[?\s*-?\d+(?:[\s,]+-?\d+)*[,\s]*\]?")
_STYLES = {
    "system": "magenta",
    "developer": "blue",
    "user": "green",
    "assistant": "bold",
    "analysis": "dim",
    "commentary": "yellow",
    "final": "bold",
}


def run(args: argparse.Namespace) -> int:
    """Runs one of the verbs, or prints the help; status 1 for a difference or a bug."""
    if args.verb is None:
        args.print_help()
        return 0
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "render": _render,
        "parse": _parse,
        "diff": _diff,
        "check": _check,
    }
    return verbs[args.verb](args)


def _render(args: argparse.Namespace) -> int:
    conversation = read_conversation(args.conversation)
    messages = conversation.on(conversation.date)
    pieces = SPECIFICATION.render(messages, training=args.training)
    ids = to_ids(pieces, o200k_harmony())
    screen = output()
    if args.json:
        screen.line(json.dumps({"text": text_of(pieces), "tokens": ids}))
    elif args.ids:
        screen.line(" ".join(map(str, ids)))
    elif screen.is_terminal:
        _coloured(screen, pieces)
    else:
        screen.line(text_of(pieces))
    return 0


def _coloured(screen: Screen, pieces: Pieces) -> None:
    """Prints each message in the colour of its role or channel, special tokens dimmed."""
    style = before = ""
    for piece in pieces:
        if isinstance(piece, Mark):
            screen.write(str(piece), style="cyan")
            before = piece.name
            continue
        if before in ("start", "channel"):
            word = re.split(r"[ :]", piece, maxsplit=1)[0]
            style = _STYLES.get(word, "red" if before == "start" else style)
        screen.write(piece, style=style)
    screen.line()


def _rendering(path: str) -> str | list[int]:
    """The ids or the text in a file, which may be a server's JSON with one of them."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise HarmonyError(f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise HarmonyError(f"{path}: more than {MAX_BYTES >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise HarmonyError(f"{path}: not UTF-8 at byte {error.start}") from None
    if _IDS.fullmatch(text.strip()):
        ids = re.findall(r"-?\d+", text)
        if long := next((number for number in ids if len(number) > 12), None):
            raise HarmonyError(f"{path}: token id {long[:20]}…: no such token")
        return [int(number) for number in ids]
    if text.lstrip().startswith("{") and (found := _answered(text)) is not None:
        return found
    # a text file ends with a newline, which is not part of the prompt
    return text.removesuffix("\n") if text.startswith("<|") else text


def _answered(text: str) -> str | list[int] | None:
    """The ids or the prompt in a server's answer to `/tokenize` or `/apply-template`.

    `render --json` writes the same format. None for other texts, which may also be JSON.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    tokens, prompt = data.get("tokens"), data.get("prompt")
    if isinstance(tokens, list) and tokens and all(type(token) is int for token in tokens):
        return tokens
    return prompt if isinstance(prompt, str) and prompt.startswith("<|start|>") else None


def _tokens(rendered: str | list[int]) -> list[int]:
    if isinstance(rendered, list):
        return rendered
    if len(rendered) > MAX_RENDERED:
        raise HarmonyError(f"a text of {len(rendered)} characters: expected {MAX_RENDERED} at most")
    return to_ids(from_text(rendered), o200k_harmony())


def _parse(args: argparse.Namespace) -> int:
    tokens = _tokens(_rendering(args.file))
    tokenizer = o200k_harmony()
    role = args.role
    if role is None and tokens[:1] != [tokenizer.special_id("start")]:
        role = "assistant"
    parser = HarmonyParser(tokenizer, role=role, strict=args.strict)
    for token in tokens:
        parser.feed(token)
    parser.finish()
    messages = [message.to_dict() for message in parser.messages]
    repairs = [
        {
            "position": one.position,
            "problem": one.problem,
            "action": one.action,
            **({"text": one.text} if one.text else {}),
        }
        for one in parser.repairs
    ]
    result = {"messages": messages, "repairs": repairs}
    output().line(json.dumps(result, ensure_ascii=False, indent=None if args.json else 1))
    return 0


def _diff(args: argparse.Namespace) -> int:
    tokenizer = o200k_harmony()
    both = [_tokens(_rendering(path)) for path in (args.first, args.second)]
    a, b = both
    at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    same = at is None and len(a) == len(b)
    at = min(len(a), len(b)) if at is None else at
    screen = output()
    if same:
        result: dict[str, Any] = {"same": True, "tokens": len(a)}
    else:
        result = {
            "same": False,
            "tokens": [len(a), len(b)],
            "position": at,
            "before": tokenizer.decode(a[max(at - 12, 0) : at]),
            "first": [[token, tokenizer.decode([token])] for token in a[at : at + 8]],
            "second": [[token, tokenizer.decode([token])] for token in b[at : at + 8]],
            "what": _what(a, b, at),
        }
    if args.json:
        screen.line(json.dumps(result))
    elif same:
        screen.line(f"The same {len(a)} tokens.")
    else:
        screen.line(f"Token {at}, after {result['before']!r}: {result['what']}")
        for path, tokens in ((args.first, a), (args.second, b)):
            shown = " ".join(repr(tokenizer.decode([token])) for token in tokens[at : at + 8])
            screen.line(f"  {path} ({len(tokens)} tokens): {shown or '(the end)'}")
    return 0 if same else 1


def _what(a: list[int], b: list[int], at: int) -> str:
    """The first difference in words."""
    tokenizer = o200k_harmony()
    if at in (len(a), len(b)):
        return "one of them ends here"
    if tokenizer.decode(a) == tokenizer.decode(b):
        special = [list(filter(tokenizer.is_special, ids)) for ids in (a, b)]
        return (
            "the same text, as a special token in one and as ordinary tokens in the other"
            if special[0] != special[1]
            else "the same text in other tokens"
        )
    inside = [piece for piece in from_ids(a[:at], tokenizer) if isinstance(piece, Mark)]
    where = {"start": "role", "channel": "channel", "message": "text", "constrain": "format"}
    part = where.get(inside[-1].name, "message") if inside else "message"
    return f"another {part}"


def _check(args: argparse.Namespace) -> int:
    said = None if args.conversation is None else [read_conversation(args.conversation)]
    sources = (args.template, args.server, None if args.rendered else args.tokenizer)
    if args.live and args.server is None:
        raise UsageError("--live goes with --server (see gptoss-ref harmony check --help)")
    if args.live and (said is not None or args.tokenizer is not None):
        raise UsageError(
            "--live asks questions of its own: expected no CONVERSATION, no --tokenizer"
        )
    if args.template is not None and args.tokenizer is not None:
        raise UsageError("expected --template or --tokenizer, found both")
    if (args.rendered is None) == all(source is None for source in sources):
        raise UsageError(
            "expected CONVERSATION.json and RENDERED, or --template, --tokenizer or --server "
            "(see gptoss-ref harmony check --help)"
        )
    report: Any
    if args.template is not None:
        report = check_template_file(args.template, said)
    elif args.server is not None:
        report = _of_server(args, said)
    elif args.rendered is None:
        report = check_tokenizer_folder(args.tokenizer, said)
    else:
        assert said is not None
        role = None if args.training else "assistant"
        rendered = _rendering(args.rendered)
        report = harmony(
            said[0],
            rendered,
            next_role=role,
            training=args.training,
            tokenizer=_tokenizer(args.tokenizer),
        )
    output().line(json.dumps(report.to_json()) if args.json else str(report))
    return 0 if report.ok else 1


def _of_server(args: argparse.Namespace, said: Any) -> Any:
    key = None
    if args.api_key_env is not None:
        key = os.environ.get(args.api_key_env)
        if not key:
            raise UsageError(f"the environment variable {args.api_key_env} is not set")
    options = {"model": args.served_model, "timeout": args.timeout, "api_key": key}
    if args.live:
        from gptoss_ref.verify.serving import check_live

        return check_live(args.server, **options)
    return check_server(args.server, said, tokenizer=_tokenizer(args.tokenizer), **options)


def _tokenizer(folder: str | None) -> Tokenizer | None:
    return None if folder is None else read_tokenizer_json(Path(folder) / "tokenizer.json")
