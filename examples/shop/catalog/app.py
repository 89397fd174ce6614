"""The catalog: a private HTTP service. Nothing outside the private network can ask it anything."""

import socket

from flask import Flask, abort, jsonify, request

from items import ITEMS

app = Flask(__name__)


def described(sku):
    item = ITEMS[sku]
    return {"sku": sku, "name": item["name"], "cents": item["cents"]}


@app.get("/items")
def items():
    """Every item, who answered, and the address the question came from."""
    return jsonify(
        items=[described(sku) for sku in ITEMS],
        answered_by=socket.gethostname(),
        asked_from=request.remote_addr,
    )


@app.get("/items/<sku>")
def item(sku):
    if sku not in ITEMS:
        abort(404, description=f"no item `{sku}`")
    return jsonify(described(sku))


@app.get("/healthz")
def healthz():
    return jsonify(ok=True)
