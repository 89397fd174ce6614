"""The page: `GET /` lists the newest entries, `POST /` with a name as the body adds one."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg


def connect():
    return psycopg.connect(os.environ["DATABASE_URL"], sslmode="require")


class Page(BaseHTTPRequestHandler):
    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, "ok\n")
        with connect() as db:
            rows = db.execute("select name, at from entry order by id desc limit 20").fetchall()
        self.answer(200, "".join(f"{at:%Y-%m-%d %H:%M:%S}  {name}\n" for name, at in rows) or "nobody yet\n")

    def do_POST(self):
        name = self.rfile.read(min(int(self.headers.get("content-length", 0)), 200)).decode(errors="replace").strip()
        if not name:
            return self.answer(400, "the body is the name\n")
        with connect() as db:
            db.execute("insert into entry (name) values (%s)", (name,))
        self.answer(201, f"welcome, {name}\n")


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
