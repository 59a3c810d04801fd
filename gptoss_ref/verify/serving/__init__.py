"""Check the answers of a running server: ``gptoss-ref harmony check --server URL --live``.

The questions are short, and any weights will do: the checks (:data:`LAWS`) hold for every answer of
the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptoss_ref.errors import EndpointError
from gptoss_ref.verify.rendering.server import Server
from gptoss_ref.verify.serving.answers import CHAT, RESPONSES
from gptoss_ref.verify.serving.checks import LAWS, Api, Fault, faults

__all__ = ["LAWS", "Fault", "LiveReport", "check_live"]


@dataclass(frozen=True)
class LiveReport:
    """The faults of a server.

    Attributes:
        faults: in the order in which they were found, one for each law and API.
        apis: the APIs that the server has.
        notes: further remarks.
    """

    faults: tuple[Fault, ...]
    apis: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the server answered a question, and there are no faults."""
        return bool(self.apis) and not self.faults

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "ok": self.ok,
            "apis": list(self.apis),
            "faults": [vars(fault) for fault in self.faults],
            "laws": dict(LAWS),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        broken = {fault.name for fault in self.faults}
        out = [f"{' and '.join(self.apis)}: {len(LAWS) - len(broken)} of {len(LAWS)} laws hold."]
        for fault in self.faults:
            out += [f"  {fault.name} ({fault.api}): {LAWS[fault.name]}", f"    {fault.what}"]
        return "\n".join([*out, *self.notes])


def check_live(
    url: str,
    *,
    model: str | None = None,
    timeout: float = 60.0,
    api_key: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> LiveReport:
    """Ask a running server questions, and check its answers.

    Args:
        url: of the server, with or without ``/v1``.
        model: its name on the server; None takes the first one that the server lists.
        timeout: seconds for each answer.
        api_key: sent as a bearer token.
        progress: called with the question that is being asked.

    Raises:
        EndpointError: the server is down, too slow, redirects, gives an invalid answer, or has
            neither of the two APIs.
    """
    server = Server(url, model=model, timeout=timeout, api_key=api_key)
    found: dict[tuple[str, str], Fault] = {}
    apis, notes = [], []
    for path in (CHAT, RESPONSES):
        api = Api(server, path)
        first = server.ask(path, server.named(api.body("Hi", tokens=16)))
        if first.status in (404, 405, 501):
            notes.append(f"{path}: the server does not have this API ({first.complaint()})")
            continue
        apis.append(path)
        for fault in faults(api, progress or (lambda _: None)):
            found.setdefault((fault.name, path), fault)
    if not apis:
        raise EndpointError(f"{server.url}: has neither {CHAT} nor {RESPONSES}")
    return LiveReport(tuple(found.values()), tuple(apis), tuple(notes))
