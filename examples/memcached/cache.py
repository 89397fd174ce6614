"""All ready Memcached servers as one cache: a key lives on the server that the hash of its name picks.

The discovery name has the address of every ready instance. It is asked again every few seconds; when a server comes or goes, rendezvous
hashing moves only that server's share of the keys.
"""

import os
import socket
import threading
import time

from pymemcache.client.hash import HashClient

NAME = os.environ["MEMCACHED"]
PORT = 11211
EVERY = 5

_lock = threading.Lock()
_servers, _client, _asked = None, None, 0.0


def servers():
    found = socket.getaddrinfo(NAME, PORT, socket.AF_INET, socket.SOCK_STREAM)
    return sorted({address[:2] for *_, address in found})


def client():
    """The cache as of now. Raises OSError while no server is ready."""
    global _servers, _client, _asked
    with _lock:
        if _client is None or time.monotonic() - _asked > EVERY:
            now = servers()
            _asked = time.monotonic()
            if now != _servers:
                _servers = now
                _client = HashClient(now, use_pooling=True, ignore_exc=True, connect_timeout=1, timeout=1)
                print("servers:", now, flush=True)
        return _client
