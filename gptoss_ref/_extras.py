"""The command that installs a missing optional dependency."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


def install_line(extra: str) -> str:
    """The command that installs this package's ``extra``, such as ``"viz"``.

    If the package was installed from a folder, a repository or a file (PEP 610's
    ``direct_url.json``), the command installs from there again, otherwise from the package index.
    """
    return f'python -m pip install "{_requirement(extra)}"'


def _requirement(extra: str) -> str:
    try:
        direct = json.loads(distribution("gptoss-ref").read_text("direct_url.json") or "null")
    except PackageNotFoundError:  # a checkout that is not installed
        return f"{Path(__file__).resolve().parents[1]}[{extra}]"
    if not direct:
        return f"gptoss-ref[{extra}]"
    if "vcs_info" in direct:
        return f"gptoss-ref[{extra}] @ {direct['vcs_info']['vcs']}+{direct['url']}"
    if "dir_info" in direct:
        return f"{url2pathname(urlsplit(direct['url']).path)}[{extra}]"
    return f"gptoss-ref[{extra}] @ {direct['url']}"
