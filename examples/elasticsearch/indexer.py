"""Puts a few books into the index, and waits for Elasticsearch as long as it takes."""

import json
import os
import time
import urllib.error
import urllib.request

BASE = "http://" + os.environ["ELASTICSEARCH"]
BOOKS = {
    "moby-dick": "Call me Ishmael. A captain hunts a white whale.",
    "walden": "I went to the woods because I wished to live deliberately.",
    "frankenstein": "A scientist makes a creature and flees from it.",
}


def put(name, text):
    body = json.dumps({"text": text}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{BASE}/books/_doc/{name}?refresh=true", body, headers, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        print(name, json.load(answer)["result"])


while True:
    try:
        for name, text in BOOKS.items():
            put(name, text)
        time.sleep(60)
    except (urllib.error.URLError, OSError) as error:
        print("elasticsearch is not ready:", error)
        time.sleep(2)
