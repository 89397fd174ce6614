"""Asks for the time over NATS."""

import asyncio
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nats
import nats.errors


async def ask():
    async with await nats.connect("nats://" + os.environ["NATS"], connect_timeout=2, max_reconnect_attempts=1) as connection:
        return (await connection.request("time", timeout=2)).data.decode()


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, "ok")
        try:
            self.answer(200, asyncio.run(ask()))
        except (nats.errors.Error, OSError) as error:
            self.answer(503, f"nobody tells the time: {error!r}")

    def answer(self, status, text):
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
