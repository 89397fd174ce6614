"""The web service: a page that shows the private service's answer and a job that the worker did."""

import html
import os
import time
import urllib.error
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from resp import Store, StoreError

GREETER = "http://" + os.environ["GREETER"]
STORE_URL = os.environ["STORE_URL"]
REPLY_SECONDS = 3

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>hello</title>
<style>
  body {{ font: 17px/1.6 system-ui, sans-serif; max-width: 38rem; margin: 12vh auto; padding: 0 1.2rem; color: #1d2b2a; background: #f6f4ee }}
  dt {{ font-size: .75rem; letter-spacing: .08em; text-transform: uppercase; color: #0f6e72; font-weight: 600; margin-top: 1.4rem }}
  dd {{ margin: .1rem 0 0; font-size: 1.15rem }} .bad {{ color: #a8341f }}
  @media (prefers-color-scheme: dark) {{ body {{ color: #e7ece8; background: #101817 }} dt {{ color: #3fb6b4 }} .bad {{ color: #f0836c }} }}
</style>
<h1>hello</h1>
<dl>{rows}</dl>
</html>
"""


def greeting():
    with urllib.request.urlopen(GREETER, timeout=5) as answer:
        return answer.read(1000).decode().strip()


def job():
    started = time.monotonic()
    name = uuid.uuid4().hex
    with Store(STORE_URL, timeout=REPLY_SECONDS + 5) as store:
        store("RPUSH", "jobs", name)
        reply = store("BLPOP", f"reply:{name}", REPLY_SECONDS)
    if reply is None:
        raise StoreError(f"no worker took the job within {REPLY_SECONDS} s")
    return f"{reply[1]}, in {(time.monotonic() - started) * 1000:.0f} ms"


def clock():
    with Store(STORE_URL) as store:
        return store("GET", "clock:latest") or "its first run comes at the next full minute"


def row(title, ask):
    """One fact of the page and whether it is one."""
    try:
        fact, ok = ask(), True
    except (OSError, urllib.error.URLError, StoreError) as error:
        fact, ok = str(error), False
    css = "" if ok else ' class="bad"'
    return f"<dt>{title}</dt><dd{css}>{html.escape(fact)}</dd>", ok


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/healthz":
            self.reply(200, "text/plain", "ok\n")
        elif self.path == "/":
            rows = [
                row("private service, asked over HTTP", greeting),
                row("background worker, through the Key Value", job),
                row("cron job", clock),
            ]
            ok = all(fine for _, fine in rows)
            self.reply(200 if ok else 503, "text/html", PAGE.format(rows="".join(text for text, _ in rows)))
        else:
            self.reply(404, "text/plain", "no such page\n")

    def reply(self, status, kind, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", int(os.environ.get("PORT", "10000"))), Web).serve_forever()
