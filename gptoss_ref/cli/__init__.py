"""The command line: `gptoss-ref`, also `python -m gptoss_ref`.

Exit status: 0 success, 1 a negative verdict, 2 bad input (one line on stderr, no traceback), 130
Ctrl-C (and SIGTERM during training), 141 a closed output pipe.
"""

from __future__ import annotations

import os
import re
import sys
from typing import NoReturn

from gptoss_ref.cli.console import visible
from gptoss_ref.cli.parser import build_parser
from gptoss_ref.errors import GptOssError

BAD_INPUT, INTERRUPTED, NO_READER = 2, 130, 141


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status; `argv` excludes the program's name."""
    try:
        args = build_parser().parse_args(argv)
        status: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return NO_READER
    except GptOssError as error:
        return _bad_input(str(error))
    except OSError as error:
        return _bad_input(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return status


def _bad_input(message: str) -> int:
    line = re.sub(r"\d{41,}", lambda m: f"{m[0][:12]}… ({len(m[0])} digits)", message)
    print("gptoss-ref: error:", visible(" ".join(line.split())), file=sys.stderr)
    return BAD_INPUT


def entry_point() -> NoReturn:
    """The console script: runs `main` and exits."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    status = main()
    if status == NO_READER:  # else flushing the buffer at exit prints an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
