"""`gptoss-ref generate PROMPT`: raw completion."""

from __future__ import annotations

import argparse
import codecs
import json
import time

from gptoss_ref.cli.console import output
from gptoss_ref.cli.sources import compile_kernels, load_model
from gptoss_ref.generation import Token, check_parameters, generate


def run(args: argparse.Namespace) -> int:
    """Streams the continuation; with --json, prints tokens and log-probabilities at the end.

    It ends when the context is full, even before --max-tokens.
    """
    check_parameters(args.max_tokens, args.temperature, args.top_k, args.top_p, args.seed)
    model = load_model(args, compiled=False)
    tokenizer, screen = model.tokenizer, output()
    prompt = tokenizer.encode(args.prompt)
    model.checked(prompt)
    compile_kernels(model)
    # the last token is never fed to the model, so its position may be one beyond the context
    room = model.config.max_position_embeddings - len(prompt) + 1
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may span tokens
    tokens: list[Token] = []
    text = ""
    start = time.perf_counter()
    for token in generate(
        model,
        prompt,
        max_new_tokens=min(args.max_tokens, max(room, 1)),
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    ):
        tokens.append(token)
        if token in model.stop_tokens:
            break
        piece = decoder.decode(tokenizer.token_bytes(token))
        text += piece
        if not args.json:
            screen.write(piece)
    seconds = time.perf_counter() - start
    rest = decoder.decode(b"", final=True)
    if not args.json:
        screen.line(rest)
        return 0
    result = {
        "prompt": prompt,
        "text": text + rest,
        "tokens": [
            {"id": int(token), "text": tokenizer.decode([token]), "logprob": token.logprob}
            for token in tokens
        ],
        "seconds": round(seconds, 6),
        "tokens_per_second": round(len(tokens) / seconds, 3) if tokens else 0.0,
    }
    screen.line(json.dumps(result, ensure_ascii=False))
    return 0
