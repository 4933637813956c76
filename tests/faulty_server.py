"""A web server on this machine that serves one content, and breaks off, stalls or refuses as a test wants."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves one content under every name; `faults` are taken one a request, then all is well.

    A fault: ("status", code, headers), ("cut", bytes of the body to send), ("stall", bytes), ("chunked",).
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.modified = content, '"one"', "Sat, 21 Nov 2026 10:00:00 GMT"
        self.ranges, self.heeds_if_range, self.size = True, True, None
        self.faults: list[tuple] = []
        self.requests: list[dict[str, str]] = []
        self.sent = 0
        self.release = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no error of the test."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        fault = server.faults.pop(0) if server.faults else ("none",)
        if fault[0] == "status":
            self.send_response(fault[1])
            for name, value in fault[2].items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, same = 0, self.headers.get("If-Range") in (None, server.etag, server.modified)
        if server.ranges and "Range" in self.headers and (same or not server.heeds_if_range):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        for name, value in (("ETag", server.etag), ("Last-Modified", server.modified)):
            if value:
                self.send_header(name, value)
        body = server.content[start:]
        if fault[0] == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            return
        self.send_header("Content-Length", str(len(body) if server.size is None else server.size))
        self.end_headers()
        part = body[: fault[1]] if fault[0] in ("cut", "stall") else body
        server.sent += len(part)  # before the client can have it, which then looks
        self.wfile.write(part)
        if fault[0] == "stall":
            server.release.wait(30)

    def log_message(self, *arguments) -> None:
        pass
