"""How much is in stock: one line of text asks, one line answers, over TCP and over UDP on the same port."""

import os
import socket
import socketserver
import threading

from items import ITEMS


def answer(line):
    sku = line.strip().decode("ascii", "replace")
    return f"{ITEMS[sku]['stock']}\n".encode() if sku in ITEMS else b"unknown\n"


class Stream(socketserver.StreamRequestHandler):
    timeout = 30

    def handle(self):
        while line := self.rfile.readline(200):
            self.wfile.write(answer(line))


class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        line, reply_socket = self.request
        reply_socket.sendto(answer(line), self.client_address)


def dual_stack(server_class):
    """The same server for IPv4 and IPv6 where the machine has both, for IPv4 alone where it hasn't."""

    class Server(server_class):
        allow_reuse_address = True
        daemon_threads = True
        if socket.has_dualstack_ipv6():
            address_family = socket.AF_INET6

            def server_bind(self):
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                super().server_bind()

    return Server


def start():
    port = int(os.environ.get("STOCK_PORT", "9090"))
    for server_class, handler in (
        (socketserver.ThreadingTCPServer, Stream),
        (socketserver.ThreadingUDPServer, Datagram),
    ):
        server = dual_stack(server_class)(("", port), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"catalog: stock protocol on {port}, TCP and UDP", flush=True)
