"""How many events there are, of each kind."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from clickhouse import query


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, "ok")
        try:
            self.answer(200, query("SELECT kind, count(), avg(value) FROM events GROUP BY kind ORDER BY kind FORMAT TSVWithNames"))
        except OSError as error:
            self.answer(503, f"no figures now: {error}")

    def answer(self, status, text):
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
