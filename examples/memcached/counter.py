"""Counts its visitors, and says how many of the warm keys are in the cache."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cache


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, "ok")
        try:
            client = cache.client()
            client.add("visitors", "0")
            visitors = client.incr("visitors", 1)
            warm = client.get_many([f"square:{number}" for number in range(100)])
            self.answer(200, f"visitor {visitors}, {len(warm)} of 100 keys are warm")
        except OSError as error:
            self.answer(503, f"no cache now: {error}")

    def answer(self, status, text):
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
