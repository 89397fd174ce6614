"""POST / with a number hands out a job and answers its id; GET /ID answers its result."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from tasks import app, increment


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path in ("/", "/healthz"):
            return self.answer(200, "ok")
        try:
            result = app.AsyncResult(self.path[1:])
            self.answer(200, result.get() if result.successful() else result.state)
        except RedisError as error:
            self.answer(503, f"no results now: {error}")

    def do_POST(self):
        try:
            number = int(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.answer(202, increment.apply_async((number,), retry=False).id)
        except ValueError:
            self.answer(400, "send a number")
        except OperationalError as error:
            self.answer(503, f"no queue now: {error}")

    def answer(self, status, text):
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
