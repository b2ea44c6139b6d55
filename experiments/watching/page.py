"""A page that shows how far plans are and refreshes itself, on this machine's loopback alone.

There are two addresses, / and /status.json; no file of the disk has one. Names that a browser asks
for are held against those of this machine: another site's page can't have its own name mean it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jinja2

from dassl.utils import UserError
from experiments.watching.data import (
    data_of,
    headline,
    is_left,
    kind_cells,
    step_cells,
    who_is_at_it,
)
from experiments.watching.lines import say
from experiments.watching.reading import standings
from experiments.watching.standing import DONE, FAILED, LEFT, Standing, steps_under_way

HERE = Path(__file__).parent
HOSTS = ("127.0.0.1", "localhost")
SECURITY = (
    "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; script-src 'sha256-{}'"
)


def serve(output: Path, port: int, every: int) -> None:
    """Serve the page until Ctrl-C.

    Raises UserError if the port is taken.
    """
    try:
        server = make_server(output, port, every)
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"--serve {port}: {why}; --serve PORT takes another, 0 a free one"
        ) from None
    with server, suppress(KeyboardInterrupt):
        say(f"http://127.0.0.1:{server.server_port} shows {output}, until Ctrl-C")
        here = f"{server.server_port}:127.0.0.1:{server.server_port}"
        say(f"  from your own machine, first: ssh -L {here} THIS_HOST")
        server.serve_forever()


def make_server(output: Path, port: int, every: int) -> ThreadingHTTPServer:
    """A server that isn't started yet. Raises OSError if the port is taken; 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
            if host not in HOSTS:
                self.answer(403, "text/plain", "no name of this machine\n")
            elif self.path == "/":
                self.answer(200, "text/html", *page(output, every))
            elif self.path == "/status.json":
                self.answer(200, "application/json", as_json(output))
            else:
                self.answer(404, "text/plain", "there are / and /status.json\n")

        do_HEAD = do_GET

        def answer(self, status: int, kind: str, text: str, security: str = "") -> None:
            body = text.encode("utf-8", "backslashreplace")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Content-Security-Policy", security or "default-src 'none'")
            self.end_headers()
            if self.command != "HEAD":
                with suppress(ConnectionError):  # nobody reads it any more
                    self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: the terminal is the user's."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def as_json(output: Path) -> str:
    """Return what `--json` prints."""
    try:
        return json.dumps({"plans": [data_of(standing) for standing in standings(output)]})
    except UserError as error:
        return json.dumps({"plans": [], "error": str(error)})


def page(output: Path, every: int) -> tuple[str, str]:
    """Return the page, and the security policy that lets its own script run and no other."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader([HERE, HERE.parent / "results"]),
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    plans, error = [], ""
    try:
        plans = [_plan(standing, output) for standing in standings(output)]
    except UserError as raised:
        error = str(raised)
    text = environment.get_template("page.html").render(
        plans=plans,
        error=error,
        script=script,
        every=every,
        read=time.strftime("%Y-%m-%d %H:%M:%S"),
    )
    return text, SECURITY.format(
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    )


def _plan(standing: Standing, output: Path) -> dict[str, Any]:
    """What the template shows of a plan."""
    return {
        "title": standing.title,
        "headline": headline(standing).partition(": ")[2],
        "who": who_is_at_it(standing, output),
        "command": standing.command if is_left(standing) else "",
        "done": standing.count(DONE),
        "lost": standing.count(FAILED) + standing.count(LEFT),
        "all": len(standing.runs),
        "kinds": [(kind.name, kind_cells(standing, kind)) for kind in standing.kinds],
        "steps": [
            (step.chain, step_cells(step, standing.now), step.slowest)
            for step in steps_under_way(standing.runs)
        ],
        "failed": standing.failed,
    }
