"""Tells the time to the site's pages."""

import datetime
import http.server
import os


class Clock(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = f"it is {datetime.datetime.now(datetime.timezone.utc):%H:%M:%S} UTC\n".encode()
        self.send_response(200 if self.path in ("/", "/now") else 404)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Clock).serve_forever()
