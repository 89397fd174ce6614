"""A very small client of the Redis protocol (RESP 2), enough for these programs."""

import socket
import time
from urllib.parse import unquote, urlsplit


class StoreError(Exception):
    """The store answered with an error, or not at all."""


class Store:
    """One connection. Not for several threads at once."""

    def __init__(self, url, timeout=5.0):
        parts = urlsplit(url)
        try:
            self.socket = socket.create_connection((parts.hostname, parts.port or 6379), timeout=timeout)
        except OSError as error:
            raise StoreError(f"no connection to the store: {error}") from error
        self.answers = self.socket.makefile("rb")
        if parts.password:
            user = [unquote(parts.username)] if parts.username else []
            self("AUTH", *user, unquote(parts.password))

    def __call__(self, *words):
        """Sends one command and returns its answer: text, number, list or None."""
        parts = [f"*{len(words)}\r\n".encode()]
        for word in words:
            raw = str(word).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(raw), raw))
        try:
            self.socket.sendall(b"".join(parts))
            return self.answer()
        except OSError as error:
            raise StoreError(f"the store went away: {error}") from error

    def answer(self):
        line = self.answers.readline()
        if not line.endswith(b"\r\n"):
            raise StoreError("the store closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind == b"-":
            raise StoreError(rest.decode())
        if kind == b"$":
            length = int(rest)
            return None if length < 0 else self.answers.read(length + 2)[:-2].decode()
        if kind == b"*":
            length = int(rest)
            return None if length < 0 else [self.answer() for _ in range(length)]
        raise StoreError(f"an answer that is no RESP 2: {line!r}")

    def close(self):
        self.answers.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def patient(url, timeout=5.0):
    """A connection, however late the store comes up."""
    pause = 0.2
    while True:
        try:
            return Store(url, timeout)
        except StoreError as error:
            print(f"waiting for the store: {error}", flush=True)
            time.sleep(pause)
            pause = min(pause * 2, 5)
