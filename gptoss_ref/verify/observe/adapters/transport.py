"""HTTP requests with JSON answers, limited in time and size; standard library only."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead
from typing import Any
from urllib.parse import SplitResult, urlsplit

from gptoss_ref.errors import EndpointError

MAX_BYTES = 64 << 20
"""Largest answer in bytes; 20 log-probabilities at 100,000 positions take about 60 MiB."""


@dataclass(frozen=True)
class Answer:
    """A server's answer: the status and the JSON value, or the text of an error."""

    status: int
    value: Any
    text: str

    @property
    def ok(self) -> bool:
        """Whether the status means success."""
        return 200 <= self.status < 300

    def complaint(self) -> str:
        """The server's error message, shortened to one line."""
        value = self.value
        for key in ("error", "message", "detail"):
            if isinstance(value, dict) and key in value:
                value = value[key]
        words = " ".join((value if isinstance(value, str) else self.text).split())
        return f"HTTP {self.status}: {words[:200]}" if words else f"HTTP {self.status}"


def request(
    url: str, body: Any = None, *, timeout: float = 60.0, api_key: str | None = None
) -> Answer:
    """POST ``body`` as JSON, or GET without one; redirects and proxies are not followed.

    Args:
        url: http or https.
        body: any JSON value.
        timeout: seconds for the whole answer.
        api_key: sent as a bearer token.

    Raises:
        EndpointError: no connection, no complete answer in time, an answer that is too large, or a
            successful status with a body that is not JSON.
    """
    status, content = fetch(url, body, timeout=timeout, api_key=api_key)
    return _judged(url, status, content)


def fetch(
    url: str, body: Any = None, *, timeout: float = 60.0, api_key: str | None = None
) -> tuple[int, bytes]:
    """Status and content of an answer of any kind; arguments and errors as for :func:`request`."""
    parts = address(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError(f"{url}: expected an address such as http://127.0.0.1:8000/v1")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    try:
        connection = kind(parts.hostname, parts.port, timeout=timeout)
    except (ValueError, HTTPException) as error:  # HTTPException: a space in the host name
        raise EndpointError(f"{url}: {error}") from None
    headers = {"Accept": "application/json", "Connection": "close"}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    late = threading.Event()
    alarm = None
    try:
        connection.connect()
        # A socket's timeout restarts with every byte; this timer does not.
        alarm = threading.Timer(timeout, _hang_up, (connection.sock, late))
        alarm.daemon = True
        alarm.start()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST" if data else "GET", target, data, headers)
        response = connection.getresponse()
        declared = int(response.headers.get("Content-Length") or 0)
        content = b"" if declared > MAX_BYTES else response.read(MAX_BYTES + 1)
        if declared > MAX_BYTES or len(content) > MAX_BYTES:
            raise EndpointError(f"{url}: the answer exceeds {MAX_BYTES >> 20} MiB")
        if late.is_set() or len(content) < declared:
            raise IncompleteRead(content, declared - len(content))
    except (OSError, HTTPException, ValueError, OverflowError) as error:  # a chunk of -10**20
        if isinstance(error, EndpointError):
            raise
        if late.is_set() or isinstance(error, TimeoutError):
            raise EndpointError(f"{url}: no complete answer within {timeout:g} seconds") from None
        if isinstance(error, IncompleteRead):
            raise EndpointError(
                f"{url}: the answer was cut off after {len(error.partial)} bytes"
            ) from None
        if isinstance(error, ConnectionRefusedError | socket.gaierror):
            raise EndpointError(f"{url}: no server there: {error.strerror or error}") from None
        reason = str(error) or type(error).__name__
        raise EndpointError(f"{url}: the connection broke: {reason}") from None
    finally:
        if alarm is not None:
            alarm.cancel()
        connection.close()
    return response.status, content


def address(url: str) -> SplitResult:
    """The parts of an address; EndpointError if it is not one."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise EndpointError(f"{url}: {error}") from None


def _hang_up(connected: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):  # already closed
        connected.shutdown(socket.SHUT_RDWR)


def _judged(url: str, status: int, content: bytes) -> Answer:
    """The answer with its JSON parsed; EndpointError if a successful answer is not JSON."""
    text = content.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
        if 200 <= status < 300:
            head = " ".join(text[:60].split())
            raise EndpointError(
                f"{url}: the answer of {len(content)} bytes is not JSON, or was cut off: {head!r}"
            ) from None
    return Answer(status, value, text)
