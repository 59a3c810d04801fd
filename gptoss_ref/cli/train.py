"""`gptoss-ref train MODEL DATA.jsonl -o OUT`: train LoRA or whole weights, without torch."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptoss_ref._extras import install_line
from gptoss_ref.cli.console import notes, output
from gptoss_ref.cli.options import UsageError
from gptoss_ref.cli.sources import compile_kernels, load_model
from gptoss_ref.errors import GptOssError

LINES = 20  # number of progress lines of a run without a terminal


def run(args: argparse.Namespace) -> int:
    """Trains with a progress bar on a terminal; Ctrl-C or SIGTERM saves the last complete step."""
    from gptoss_ref.training import AdamW, LoRA, Recipe, read_jsonl, train
    from gptoss_ref.training.state import STATE

    if args.plot is not None:
        _check_plot(args.plot)
    if args.evaluate_every and args.held_out is None:
        raise UsageError("--evaluate-every needs data for the evaluation: expected --held-out FILE")
    lora = None if args.rank == 0 else LoRA(args.rank, args.alpha, tuple(args.targets))
    recipe = Recipe(
        steps=args.steps,
        epochs=args.epochs,
        batch_size=args.batch,
        accumulation=args.accumulation,
        learning_rate=args.rate,
        schedule=args.schedule,
        warmup=args.warmup,
        optimizer=AdamW(weight_decay=args.weight_decay),
        clip=args.clip or None,
        lora=lora,
        whole=tuple(args.whole),
        router_aux_loss_coef=args.router_aux_loss_coef,
        seed=args.seed,
        evaluate_every=args.evaluate_every,
        save_every=args.save_every,
    )
    if args.backend == "auto":  # a resumed run must use the same backend
        args.backend = "numba"
    model = load_model(args, compiled=False)
    size = {"context": model.config.max_position_embeddings}
    data = read_jsonl(args.data, model.tokenizer, **size)
    held_out = read_jsonl(args.held_out, model.tokenizer, **size) if args.held_out else []
    screen, done = notes(), -1
    try:
        compile_kernels(model)
        with _sigterm_interrupts(), screen.progress("training", of_bytes=False) as bar:

            def report(entry: dict[str, Any], steps: int) -> None:
                nonlocal done
                done = entry["step"]
                if screen.is_rich and bar is not None and "loss" in entry:
                    bar(done, steps, f"loss {entry['loss']:.4f}")
                elif "loss" not in entry or done % max(1, steps // LINES) == 0:
                    screen.line(line(entry, steps))

            trained = train(
                model,
                data,
                recipe,
                held_out=held_out,
                out=args.output,
                resume=args.resume,
                report=report,
            )
    except KeyboardInterrupt:
        if (Path(args.output) / STATE).exists():
            after = f" after step {done}" if done >= 0 else ""  # else before the first report
            screen.line(f"stopped{after}; saved in {args.output}; --resume continues")
        raise
    if args.plot is not None:
        from gptoss_ref.viz import loss_curve

        loss_curve(trained.history).savefig(args.plot)
    last = [entry for entry in trained.history if "loss" in entry][-1]
    result = {
        "path": str(args.output),
        "examples": len(data),
        "parameters": trained.parameters,
        "steps": last["step"],
        "loss": last["loss"],
        "seconds": round(trained.seconds, 3),
        "history": trained.history,
    }
    text = (
        f"{args.output}: {trained.parameters} parameters, {last['step']} steps over {len(data)} "
        f"examples, loss {last['loss']:.4f}, {trained.seconds:.0f} s"
    )
    output().line(json.dumps(result) if args.json else text)
    return 0


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt: batch systems and containers send it before they kill."""
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield
        return

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice; saving goes on
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def line(entry: dict[str, Any], steps: int) -> str:
    """A record of the history as a line of text."""
    at = f"step {entry['step']} of {steps}: "
    if "loss" in entry:
        return at + f"loss {entry['loss']:.4f}"
    return at + f"held out: loss {entry['held_out_loss']:.4f}, {entry['held_out_right']:.1%} right"


def _check_plot(file: str) -> None:
    """Raises GptOssError before the work if the plot cannot be drawn or written."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise GptOssError(
            f"--plot needs matplotlib, which is not installed: {install_line('viz')}"
        ) from None
    path = Path(file)
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise GptOssError(f"--plot {file}: expected a file that ends with .svg, .png or .pdf")
    if not path.parent.is_dir():
        raise GptOssError(f"--plot {file}: its folder does not exist")
