"""A web server over a folder that can be made to fail, stall and dawdle."""

import contextlib
import http.server
import pathlib
import threading
import time
from collections.abc import Callable


@contextlib.contextmanager
def serve(folder: pathlib.Path, mood: Callable[[str, int], int | float | None] = lambda path, times: None):
    """Serves a folder with byte ranges on localhost; yields its URL and the list of requests.

    mood(path, how often it was asked for) is a status to answer with, seconds (a float) to wait first, or None.
    """
    asked: list[str] = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append(self.path)
            answer = mood(self.path, asked.count(self.path))
            if isinstance(answer, float):
                over.wait(answer)
            file = folder / self.path.lstrip("/")
            body, status = b"", answer if isinstance(answer, int) else 404
            if not isinstance(answer, int) and file.is_file():
                body, status = self._range(file.read_bytes())
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 206:
                self.send_header("Content-Range", self._content_range)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def _range(self, data: bytes) -> tuple[bytes, int]:
            if "Range" not in self.headers:
                return data, 200
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            start = int(first) if first else max(0, len(data) - int(last))
            stop = int(last) + 1 if first and last else len(data)
            part = data[start:stop]
            self._content_range = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            return part, 206

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients that are killed say no goodbye
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_address[1]}", asked
    finally:
        over.set()
        time.sleep(0.05)
        server.shutdown()
        server.server_close()
        thread.join()
