"""`gptoss-ref inspect MODEL PROMPT -o FILE`: write an HTML page to look inside a pass."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_ref.chat import build_conversation, render_conversation
from gptoss_ref.cli.chat import read_tools
from gptoss_ref.cli.console import output
from gptoss_ref.cli.sources import load_model
from gptoss_ref.errors import GptOssError, HarmonyError
from gptoss_ref.generation import check_parameters, generate
from gptoss_ref.viz import inspector

if TYPE_CHECKING:
    from gptoss_ref.model import Model


def run(args: argparse.Namespace) -> int:
    """Computes the prompt, and the reply if asked for, and writes the page."""
    target = Path(args.output)
    if target.is_dir() or not target.parent.is_dir():
        raise GptOssError(f"{target}: expected the name of a file, in a folder that exists")
    if not args.prompt.strip():
        raise HarmonyError("PROMPT is empty: expected a text")
    for_chats = {
        "--reasoning": args.reasoning,
        "--instructions": args.instructions,
        "--tools": args.tools,
    }
    given = [option for option, value in for_chats.items() if value is not None]
    if args.raw and given:
        raise GptOssError(f"{given[0]} is part of a chat: expected it without --raw")
    messages = build_conversation(
        args.prompt,
        reasoning=args.reasoning,
        instructions=args.instructions,
        tools=read_tools(args.tools),
    )
    check_parameters(args.generate, args.temperature, args.top_k, args.top_p, args.seed)
    model = load_model(args)
    tokenizer = model.tokenizer
    prompt = tokenizer.encode(args.prompt) if args.raw else render_conversation(messages, tokenizer)
    tokens = prompt + _reply(model, prompt, args)
    text = inspector.page(model, tokens, name=Path(args.model).name)
    inspector.write(target, text)
    size = target.stat().st_size
    result = {
        "path": args.output,
        "tokens": tokens,
        "prompt_tokens": len(prompt),
        "bytes": size,
    }
    said = f"{args.output}: {len(tokens)} tokens of {args.model}, {size / 1e6:.2f} MB"
    output().line(json.dumps(result) if args.json else said)
    return 0


def _reply(model: Model, prompt: list[int], args: argparse.Namespace) -> list[int]:
    """The first tokens of the reply, as many as --generate asks for and the context holds."""
    room = model.config.max_position_embeddings - len(prompt)
    count = min(args.generate, room)
    if count <= 0:
        return []
    sampling = (args.temperature, args.top_k, args.top_p, args.seed)
    return [int(token) for token in generate(model, prompt, count, *sampling)]
