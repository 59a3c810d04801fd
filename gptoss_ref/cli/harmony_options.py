"""The options of the command ``harmony``: one verb for each thing that it does."""

from __future__ import annotations

from gptoss_ref.cli.help import HelpFormatter, examples
from gptoss_ref.cli.options import Parser, add_json_option, file_name, seconds


def add_verbs(command: Parser) -> None:
    """Add the verbs of ``harmony`` to its command."""
    command.set_defaults(print_help=command.print_help)
    verbs = command.add_subparsers(metavar="VERB", parser_class=Parser, dest="verb")

    def verb(name: str, summary: str) -> Parser:
        made: Parser = verbs.add_parser(
            name,
            help=summary,
            description=f"{name}: {summary}.",
            epilog=examples(f"harmony {name}"),
            formatter_class=HelpFormatter,
        )
        return made

    render = verb("render", "write a conversation as the model's prompt")
    render.add_argument(
        "conversation", metavar="CONVERSATION.json", help="chat or Harmony messages"
    )
    render.add_argument("--ids", action="store_true", help="print token ids")
    render.add_argument(
        "--training", action="store_true", help="a training example, which ends with <|return|>"
    )
    parse = verb("parse", "read token ids or text as messages")
    parse.add_argument(
        "file", type=file_name, metavar="FILE", help="token ids or text; - for stdin"
    )
    parse.add_argument(
        "--role", metavar="ROLE", help="role of the first message, if its <|start|>ROLE is missing"
    )
    parse.add_argument("--strict", action="store_true", help="refuse violations of the format")
    diff = verb("diff", "compare two renderings token by token")
    diff.add_argument("first", type=file_name, metavar="A", help="token ids or text")
    diff.add_argument("second", type=file_name, metavar="B", help="token ids or text")
    check = verb("check", "name the bug in a rendering, a chat template or a server")
    check.add_argument("conversation", nargs="?", metavar="CONVERSATION.json")
    check.add_argument(
        "rendered",
        nargs="?",
        metavar="RENDERED",
        help="another program's rendering: ids or text",
    )
    source = check.add_mutually_exclusive_group()
    source.add_argument("--template", metavar="FILE", help="a Jinja chat template (extra: verify)")
    source.add_argument("--server", metavar="URL", help="a running server")
    check.add_argument(
        "--live", action="store_true", help="with --server: ask questions, and check the answers"
    )
    check.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="check the chat template in this tokenizer's folder; with --server or RENDERED: the "
        "tokenizer of their ids",
    )
    check.add_argument("--training", action="store_true", help="RENDERED is a training example")
    check.add_argument("--served-model", metavar="NAME", help="its name on the server")
    check.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="S", help="seconds for each answer"
    )
    check.add_argument(
        "--api-key-env", metavar="VARIABLE", help="environment variable that holds the server's key"
    )
    for one in (render, parse, diff, check):
        add_json_option(one)
