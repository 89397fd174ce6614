"""POST / puts the body into the queue; GET / says how many jobs wait."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pika
import pika.exceptions

import broker


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, "ok")
        self.with_channel(lambda channel: f"{channel.queue_declare(broker.QUEUE, durable=True).method.message_count} waiting")

    def do_POST(self):
        job = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kept = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)

        def publish(channel):
            channel.confirm_delivery()
            channel.basic_publish("", broker.QUEUE, job, kept)
            return "taken"

        self.with_channel(publish)

    def with_channel(self, do):
        try:
            channel = broker.channel()
            try:
                self.answer(200, do(channel))
            finally:
                channel.connection.close()
        except (pika.exceptions.AMQPError, OSError) as error:
            self.answer(503, f"no queue now: {error!r}")

    def answer(self, status, text):
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page).serve_forever()
