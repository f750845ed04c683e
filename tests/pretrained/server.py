"""A local HTTP server for one weights file; each test chooses how it behaves."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(0).bytes(1_000_000)


SIZE = len(CONTENT)


class Server(ThreadingHTTPServer):
    """Answer each request with the next behaviour, and repeat the last one for ever."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours = [whole]
        self.ranges = []  # Range headers of the requests, in order
        self.sent = 0  # bytes of response bodies

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/models/weights.pth"

    def handle_error(self, request, client_address):
        pass  # some tests disconnect on purpose


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802 (the base class's name)
        server = self.server
        server.ranges.append(self.headers["Range"])
        behaviours = server.behaviours
        behaviour = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
        behaviour(self)
        self.close_connection = True

    def log_message(self, *_):
        pass

    def answer(self, status=200, body=b"", length=None, **headers):
        self.send_response(status)
        if length != "none":
            self.send_header("Content-Length", str(length or len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:
            return
        self.server.sent += len(body)

    def asked_from(self):
        header = self.headers["Range"]
        return int(header.removeprefix("bytes=").removesuffix("-")) if header else 0


def whole(handler):
    """Send the content, from the first byte of the Range header if there is one."""
    start = handler.asked_from()
    if not start:
        return handler.answer(body=CONTENT)
    span = f"bytes {start}-{SIZE - 1}/{SIZE}"
    handler.answer(206, CONTENT[start:], Content_Range=span)
