"""Worker process that renders a chat template in a sandbox.

template.py starts it with a job on standard input: the template, the variables of each rendering,
the date and the limits. It writes one JSON line for each rendering. It imports nothing of this
package.

The environment is that of transformers' ``apply_chat_template``: jinja2's immutable sandbox,
``trim_blocks``, ``lstrip_blocks``, loop controls, ``tojson`` without escapes, ``raise_exception``
and ``strftime_now``.
"""

import contextlib
import datetime
import json
import sys
from typing import Any, NoReturn


def limit(seconds: int, megabytes: int) -> None:
    """Limit CPU time and memory, and forbid writing files."""
    try:
        import resource
    except ImportError:  # Windows: only the parent's time limit remains
        return
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_FSIZE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # macOS refuses some of them
            resource.setrlimit(what, (most, most))


def environment(today: str) -> Any:
    """The sandbox."""
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def strftime_now(form: str) -> str:
        return datetime.date.fromisoformat(today).strftime(form)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return made


def main() -> None:
    """Reads the job and does it."""
    job = json.load(sys.stdin)
    from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

    sandbox = environment(job["date"])
    limit(job["seconds"], job["megabytes"])
    try:
        template = sandbox.from_string(job["template"])
    except MemoryError:  # jinja2 evaluates constants while it compiles
        print(json.dumps({"memory": True}))
        return
    except (TemplateSyntaxError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        print(json.dumps({"broken": f"line {line}: {error}" if line else str(error) or "too deep"}))
        return
    for variables in job["renderings"]:
        size, out = 0, []
        try:
            for piece in template.generate(**variables):
                size += len(piece)
                if size > job["characters"]:
                    print(json.dumps({"large": size}))
                    return
                out.append(piece)
            answer = {"text": "".join(out)}
        except SecurityError as error:
            answer = {"unsafe": str(error)}
        except MemoryError:
            print(json.dumps({"memory": True}))
            return
        except (TemplateError, RecursionError) as error:
            answer = {"refused": str(error)[:300] or type(error).__name__}
        except Exception as error:
            answer = {"refused": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
