"""`gptoss-ref tokens TEXT`: the token ids of a text."""

from __future__ import annotations

import argparse
import json
import sys

from gptoss_ref.chat.hf_tokenizer import load_tokenizer
from gptoss_ref.checkpoint import load_checkpoint
from gptoss_ref.cli.console import output
from gptoss_ref.cli.sources import encoded, source


def run(args: argparse.Namespace) -> int:
    """Prints the ids in one line, in the format of --tokens."""
    text = sys.stdin.read() if args.text == "-" else args.text
    checkpoint = load_checkpoint(source(args.model, args.download))
    tokenizer = load_tokenizer(checkpoint.root, checkpoint.config)
    ids = encoded(text, tokenizer, chat=args.chat)
    output().line(json.dumps(ids) if args.json else ",".join(map(str, ids)))
    return 0
