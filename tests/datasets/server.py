"""A web server on loopback with the faults of real ones."""

import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler, int], None]


class Server:
    """Serves what is in `answers`: path to a function of the handler and the request's number."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: list[str | None] = []
        self.over = threading.Event()  # lets silent answers end
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number = outer.requests[self.path]
                outer.requests[self.path] += 1
                outer.ranges.append(self.headers.get("Range"))
                if self.path in outer.answers:
                    outer.answers[self.path](self, number)
                else:
                    self.send_error(404)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    def url(self, path: str) -> str:
        """Return the address of `path`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def close(self) -> None:
        """Stop serving."""
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    # -------------------------------------------------------- answers

    def file(
        self,
        content: bytes,
        tag: str = '"1"',
        kind: str = "application/octet-stream",
        stop_at: int | None = None,
        silent: bool = False,
        until: int | None = None,
        ranges: bool = True,
    ) -> Answer:
        """Return an answer that gives `content`, or a part of it and then cuts or falls silent.

        `stop_at`: bytes given per request, for the first `until` requests.
        """

        def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
            asked = handler.headers.get("Range") if ranges else None
            start = int(asked[len("bytes=") :].rstrip("-")) if asked else 0
            if asked and handler.headers.get("If-Range") != tag:
                start = 0
            if start > len(content) or (start and start == len(content)):
                handler.send_error(416)
                return
            handler.send_response(206 if start else 200)
            if start:
                rest = f"bytes {start}-{len(content) - 1}/{len(content)}"
                handler.send_header("Content-Range", rest)
            handler.send_header("ETag", tag)
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(content) - start))
            handler.end_headers()
            faulty = stop_at is not None and (until is None or number < until)
            end = min(len(content), start + stop_at) if faulty else len(content)
            handler.wfile.write(content[start:end])
            handler.wfile.flush()
            if faulty and silent:
                self.over.wait(20)

        return answer

    def error(self, code: int, then: Answer | None = None) -> Answer:
        """Return an answer that is an HTTP error, `then` another one."""

        def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
            if number and then:
                then(handler, number - 1)
            else:
                handler.send_error(code)

        return answer
