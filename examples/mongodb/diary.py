"""The newest entries."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pymongo.errors import PyMongoError

from database import ENTRIES


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, "ok")
        try:
            newest = ENTRIES.find().sort("at", -1).limit(10)
            self.answer(200, "\n".join(f"{entry['at']:%H:%M:%S} {entry['text']}" for entry in newest))
        except PyMongoError as error:
            self.answer(503, f"no diary now: {error}")

    def answer(self, status, text):
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
