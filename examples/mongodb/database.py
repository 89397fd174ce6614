"""The collection that both sides use."""

import os

from pymongo import MongoClient

CLIENT = MongoClient(
    "mongodb://" + os.environ["MONGODB"],
    username=os.environ["MONGODB_USER"],
    password=os.environ["MONGODB_PASSWORD"],
    serverSelectionTimeoutMS=5000,
)
ENTRIES = CLIENT.diary.entries
