"""The storefront: the shop's only public part.

Every page shows an answer of the private `catalog` and a job that the `mailer` did, handed over through the `queue`.
Whatever is not up yet is shown as such; the page itself always answers.
"""

import hashlib
import hmac
import json
import os
import socket
import time
import uuid

import redis
import requests
from celery import Celery
from flask import Flask, abort, jsonify, redirect, render_template, request, url_for
from kombu.exceptions import OperationalError

CATALOG_HOST = os.environ["CATALOG_HOST"]
CATALOG = "http://" + os.environ["CATALOG_HOSTPORT"]
STOCK_PORT = int(os.environ["STOCK_PORT"])
QUEUE_URL = os.environ["QUEUE_URL"]
SIGNING_KEY = os.environ["SIGNING_KEY"].encode()
SHOP_NAME = os.environ.get("SHOP_NAME", "the shop")
KEPT_ORDERS = 8

app = Flask(__name__)
mailer = Celery("storefront", broker=QUEUE_URL)
mailer.conf.update(
    task_ignore_result=True,
    broker_connection_timeout=2,
    broker_transport_options={"socket_connect_timeout": 2, "socket_timeout": 5},
)
queue = redis.Redis.from_url(QUEUE_URL, decode_responses=True, socket_connect_timeout=2, socket_timeout=5)


class NotThere(Exception):
    """A part of the shop that does not answer (yet), in words for the page."""


def ask_catalog():
    try:
        answer = requests.get(f"{CATALOG}/items", timeout=(2, 5))
        answer.raise_for_status()
        return answer.json()
    except requests.RequestException as error:
        raise NotThere(f"the catalog does not answer: {error}") from error


def ask_stock(sku):
    """The raw protocol of the catalog's second port."""
    try:
        with socket.create_connection((CATALOG_HOST, STOCK_PORT), timeout=2) as line:
            line.sendall(sku.encode() + b"\n")
            answer = line.makefile("rb").readline(20).strip().decode()
            return int(answer) if answer.isdigit() else None
    except OSError:
        return None


def give_job(task, *arguments):
    try:
        policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0.3}
        mailer.send_task(task, args=arguments, retry=True, retry_policy=policy)
    except (OperationalError, redis.RedisError, OSError) as error:
        raise NotThere(f"the queue does not take jobs: {error}") from error


def letter(name):
    """What the mailer wrote for a visit or an order, or none yet."""
    try:
        found = queue.get(f"letter:{name}")
    except redis.RedisError as error:
        raise NotThere(f"the queue does not answer: {error}") from error
    if found is None:
        return None
    found = json.loads(found)
    expected = hmac.new(SIGNING_KEY, found["text"].encode(), hashlib.sha256).hexdigest()
    found["signature_ok"] = hmac.compare_digest(expected, found.pop("signature"))
    return found


def letter_within(name, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := letter(name)) is not None:
            return found
        time.sleep(0.02)
    return None


def catalog_part():
    started = time.monotonic()
    try:
        part = ask_catalog()
    except NotThere as error:
        return {"ok": False, "why": str(error), "items": []}
    part["took_ms"] = round((time.monotonic() - started) * 1000, 1)
    for item in part["items"]:
        item["stock"] = ask_stock(item["sku"])
    return {"ok": True, **part}


def mailer_part():
    visit = "visit-" + uuid.uuid4().hex[:12]
    started = time.monotonic()
    try:
        give_job("mailer.welcome", visit)
        found = letter_within(visit, 3)
    except NotThere as error:
        return {"ok": False, "why": str(error)}
    if found is None:
        return {"ok": False, "why": "the job waits in the queue: no worker took it within 3 s"}
    return {"ok": True, **found, "round_trip_ms": round((time.monotonic() - started) * 1000, 1)}


def orders_part():
    try:
        numbers = queue.lrange("orders", 0, KEPT_ORDERS - 1)
        digest = queue.get("digest:latest")
        return [{"number": number, "letter": letter(number)} for number in numbers], digest and json.loads(digest)
    except (redis.RedisError, NotThere):
        return [], None


@app.get("/")
def page():
    orders, digest = orders_part()
    return render_template(
        "page.html",
        shop=SHOP_NAME,
        host=socket.gethostname(),
        catalog=catalog_part(),
        mailer=mailer_part(),
        orders=orders,
        digest=digest,
    )


@app.get("/status.json")
def status():
    """The page's facts for programs; 503 while a part is missing."""
    catalog, worker = catalog_part(), mailer_part()
    _, digest = orders_part()
    everything = catalog["ok"] and worker["ok"]
    return jsonify(ok=everything, catalog=catalog, mailer=worker, digest=digest), 200 if everything else 503


@app.post("/orders")
def order():
    """Enqueues a receipt. Form fields or JSON: `sku`, `quantity` (1–99)."""
    fields = request.get_json(silent=True) or request.form
    sku = str(fields.get("sku", ""))
    try:
        quantity = int(fields.get("quantity", 1))
    except (TypeError, ValueError):
        abort(400, description="`quantity` must be a whole number")
    if not 1 <= quantity <= 99:
        abort(400, description="`quantity` must be from 1 to 99")
    try:
        if sku not in {item["sku"] for item in ask_catalog()["items"]}:
            abort(400, description=f"no item `{sku}`")
        number = "order-" + uuid.uuid4().hex[:12]
        give_job("mailer.receipt", number, sku, quantity)
        queue.lpush("orders", number)
        queue.ltrim("orders", 0, KEPT_ORDERS - 1)
    except (NotThere, redis.RedisError) as error:
        abort(503, description=str(error))
    if request.is_json:
        return jsonify(order=number, result=url_for("order_result", number=number)), 202
    return redirect(url_for("page") + f"#{number}", code=303)


@app.get("/orders/<number>")
def order_result(number):
    try:
        found = letter(number)
    except NotThere as error:
        abort(503, description=str(error))
    return jsonify(order=number, done=found is not None, receipt=found)


@app.get("/healthz")
def healthz():
    """Says only that this program serves: whether others are up is theirs to say."""
    return jsonify(ok=True)
