"""An HTTP server on this machine that speaks the chat API, and misbehaves on request."""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Request = dict[str, Any]


@dataclass(frozen=True)
class Misbehaviour:
    """What one request meets instead of a completion.

    ``raw`` replaces the body; ``announced_bytes`` declares a longer body than is sent and cuts the connection;
    ``drip_s`` sends the body byte by byte with that pause; ``hang`` sends nothing until the server stops.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes | None = None
    announced_bytes: int | None = None
    drip_s: float = 0.0
    hang: bool = False


def completion(text: str | None, *, finish_reason: str = "stop", usage: dict[str, int] | None = None) -> bytes:
    """The body of a chat completion."""
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "teacher-2026-01",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason},
        ],
    }
    if usage is not None:
        body["usage"] = usage
    return json.dumps(body).encode()


@dataclass
class LocalEndpoint:
    """A running server.

    Attributes:
        base_url: address to configure.
        answer: the text of a completion to a request.
        misbehave: what the next requests meet, first come first served; empty means that it answers.
        requests: bodies received, in order.
        headers: their headers.
        most_at_once: most requests under way at one moment.
    """

    base_url: str = ""
    answer: Callable[[Request], str] = lambda request: "yes"
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 10, "completion_tokens": 2})
    misbehave: deque[Misbehaviour] = field(default_factory=deque)
    requests: list[Request] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    under_way: int = 0
    hold: threading.Event | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    server: "EndpointServer"

    def do_POST(self) -> None:
        endpoint = self.server.endpoint
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.lock:
            endpoint.requests.append(request)
            endpoint.headers.append(dict(self.headers))
            endpoint.under_way += 1
            endpoint.most_at_once = max(endpoint.most_at_once, endpoint.under_way)
            met = endpoint.misbehave.popleft() if endpoint.misbehave else Misbehaviour()
        try:
            if endpoint.hold is not None:
                endpoint.hold.wait(20)
            if met.hang:
                endpoint.stopped.wait(20)
                self.close_connection = True
                return
            self.respond(met, request)
        finally:
            with endpoint.lock:
                endpoint.under_way -= 1

    def respond(self, met: Misbehaviour, request: Request) -> None:
        endpoint = self.server.endpoint
        found = self.path == "/v1/chat/completions"
        body = met.raw
        if body is None:
            body = completion(endpoint.answer(request), usage=endpoint.usage) if met.status == 200 else b"busy"
        self.send_response(met.status if found else 404)
        for name, value in met.headers:
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(met.announced_bytes or len(body)))
        self.end_headers()
        self.send(body, met.drip_s)
        if met.announced_bytes:
            self.close_connection = True

    def send(self, body: bytes, drip_s: float) -> None:
        if not drip_s:
            self.wfile.write(body)
            return
        for byte in body:
            if self.server.endpoint.stopped.wait(drip_s):
                return
            try:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            except OSError:  # the client gave up, which is what the test wants
                self.close_connection = True
                return

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


class EndpointServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, endpoint: LocalEndpoint) -> None:
        self.endpoint = endpoint
        super().__init__(("127.0.0.1", 0), Handler)


@contextmanager
def serve(endpoint: LocalEndpoint) -> Iterator[LocalEndpoint]:
    """Run the server on a free port of this machine."""
    server = EndpointServer(endpoint)
    endpoint.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
