# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers of Python applications, all with the same application."""

import importlib.util
import sys
from pathlib import Path

from fastsocket.bench.modes import Mode
from fastsocket.bench.site import ANSWER, Site
from fastsocket.errors import FastsocketError

__all__ = ["Granian", "Gunicorn", "Uvicorn"]

BACKLOG = 2048
# Between two workers that granian replaces at a reload.
RESPAWN_SECONDS = "0.2"

_APPLICATION = """\
import time

ANSWER = b"{answer}"
HEADERS = [("content-type", "text/plain"), ("content-length", str(len(ANSWER)))]


def burn(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def answer(path):
    if path == "/slow":
        {stall}({seconds})
    return ANSWER


def wsgi(environ, start_response):
    start_response("200 OK", HEADERS)
    return [answer(environ["PATH_INFO"])]


async def asgi(scope, receive, send):
    headers = [(name.encode(), value.encode()) for name, value in HEADERS]
    body = answer(scope["path"])
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""


class Gunicorn:
    """gunicorn with sync workers; its `--reuse-port` still shares one socket among workers."""

    name = "gunicorn"
    modes = (Mode.STOCK, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`fastsocket.bench.servers.Server`."""
        return [
            *_module("gunicorn"),
            *("--workers", str(site.workers), "--bind", f"{site.address}:{site.port}"),
            *("--chdir", str(_application(site)), "--log-level", "warning", "bench_app:wsgi"),
        ]


class Granian:
    """granian serving ASGI, an event loop in each worker; its workers share one socket."""

    name = "granian"
    modes = (Mode.STOCK, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`fastsocket.bench.servers.Server`."""
        keep = "--http1-keep-alive" if site.keep_alive else "--no-http1-keep-alive"
        return [
            *_module("granian"),
            *("--interface", "asgi", "--workers", str(site.workers), keep),
            # Idle connections count against the backpressure, whose default is 1,024 for all.
            *("--backlog", str(BACKLOG), "--backpressure", str(site.capacity)),
            *("--respawn-failed-workers", "--respawn-interval", RESPAWN_SECONDS),
            *("--host", site.address, "--port", str(site.port), "--log-level", "warning"),
            *("--working-dir", str(_application(site)), "bench_app:asgi"),
        ]


class Uvicorn:
    """uvicorn serving ASGI; its workers share one socket."""

    name = "uvicorn"
    modes = (Mode.STOCK, Mode.FASTSOCKET)

    def command(self, mode: Mode, site: Site) -> list[str]:
        """See :class:`fastsocket.bench.servers.Server`."""
        return [
            *_module("uvicorn"),
            *("--workers", str(site.workers), "--backlog", str(BACKLOG), "--lifespan", "off"),
            *("--host", site.address, "--port", str(site.port), "--log-level", "warning"),
            *("--no-access-log", "--app-dir", str(_application(site)), "bench_app:asgi"),
        ]


def _module(name: str) -> list[str]:
    """Return the command of a Python server in this interpreter's environment."""
    if importlib.util.find_spec(name) is None:
        raise FastsocketError(f"{name} is not installed", todo=f"pip install {name}")
    return [sys.executable, "-m", name]


def _application(site: Site) -> Path:
    """Write the application of the Python servers and return its folder."""
    seconds = site.stall.milliseconds / 1000 if site.stall else 0
    stall = "burn" if site.stall and site.stall.burn else "time.sleep"
    text = _APPLICATION.format(answer=ANSWER, seconds=seconds, stall=stall)
    return site.file("bench_app.py", text).parent
