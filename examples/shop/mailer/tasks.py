"""The mailer: a background worker. It takes jobs from the queue, asks the catalog, and leaves what it wrote in the outbox.

Nothing can open a connection to it; it reaches out to the queue and to the catalog.
"""

import hashlib
import hmac
import json
import os
import socket
import time

import redis
import requests
from celery import Celery

QUEUE_URL = os.environ["QUEUE_URL"]
CATALOG = "http://" + os.environ["CATALOG_HOSTPORT"]
SIGNING_KEY = os.environ["SIGNING_KEY"].encode()
SHOP_NAME = os.environ.get("SHOP_NAME", "the shop")
KEPT_SECONDS = 3600

app = Celery("mailer", broker=QUEUE_URL)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,  # a job that a dying worker held is done by the next one
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,  # the queue may come up after the mailer
)
outbox = redis.Redis.from_url(QUEUE_URL, decode_responses=True)

RETRY = {
    "autoretry_for": (requests.RequestException, redis.RedisError),
    "retry_backoff": 1,
    "retry_backoff_max": 8,
    "max_retries": 10,
}


def signed(text):
    return hmac.new(SIGNING_KEY, text.encode(), hashlib.sha256).hexdigest()


def put(key, text, started):
    """Leaves a signed letter in the outbox."""
    letter = {
        "text": text,
        "signature": signed(text),
        "written_by": socket.gethostname(),
        "took_ms": round((time.monotonic() - started) * 1000, 1),
    }
    outbox.set(key, json.dumps(letter), ex=KEPT_SECONDS)


@app.task(name="mailer.welcome", **RETRY)
def welcome(visit):
    """Writes the note that greets a visitor: it needs the catalog, so it proves worker → private service too."""
    started = time.monotonic()
    answer = requests.get(f"{CATALOG}/items", timeout=5)
    answer.raise_for_status()
    count = len(answer.json()["items"])
    put(f"letter:{visit}", f"Welcome to {SHOP_NAME}: {count} things to buy today.", started)


@app.task(name="mailer.receipt", **RETRY)
def receipt(order, sku, quantity):
    """Writes the receipt of an order. The price is the catalog's, not the customer's."""
    started = time.monotonic()
    answer = requests.get(f"{CATALOG}/items/{sku}", timeout=5)
    answer.raise_for_status()
    item = answer.json()
    total = item["cents"] * quantity
    text = f"{quantity} × {item['name']}: {total / 100:.2f} €. Thank you, {SHOP_NAME}."
    put(f"letter:{order}", text, started)
    outbox.hset("sold", order, json.dumps({"sku": sku, "quantity": quantity, "cents": total}))
