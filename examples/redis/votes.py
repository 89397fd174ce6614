"""POST / votes for the body; GET / says what was counted. One vote a minute from each address."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import redis

from stores import sessions, votes


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, "ok")
        self.guarded(lambda: (200, json.dumps(votes.hgetall("counted"))))

    def do_POST(self):
        vote = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 100)).decode(errors="replace")
        client = self.headers.get("X-Forwarded-For", self.client_address[0])

        def take():
            if not sessions.set(f"voted:{client}", 1, nx=True, ex=60):
                return 429, "you have voted in the last minute"
            votes.rpush("votes", vote)
            return 202, "taken"

        self.guarded(take)

    def guarded(self, do):
        try:
            self.answer(*do())
        except redis.RedisError as error:
            self.answer(503, f"no votes now: {error}")

    def answer(self, status, text):
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
