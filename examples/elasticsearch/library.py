"""A search page: GET /?q=word answers the titles of the books that have it."""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BASE = "http://" + os.environ["ELASTICSEARCH"]


def search(word):
    query = urllib.parse.urlencode({"q": f'text:"{word}"', "ignore_unavailable": "true"})
    with urllib.request.urlopen(f"{BASE}/books/_search?{query}", timeout=5) as answer:
        return [hit["_id"] for hit in json.load(answer)["hits"]["hits"]]


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/healthz":
            return self.answer(200, "ok")
        word = urllib.parse.parse_qs(url.query).get("q", ["whale"])[0].replace('"', " ")
        try:
            self.answer(200, json.dumps(search(word)))
        except (urllib.error.URLError, OSError) as error:
            self.answer(503, f"no search now: {error}")

    def answer(self, status, text):
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
