"""Answers the time. Nothing can connect to a worker: questions come through the connection that it opened itself."""

import asyncio
import datetime
import os

import nats


async def answer(question):
    now = datetime.datetime.now(datetime.timezone.utc)
    await question.respond(f"{now:%H:%M:%S} says {os.uname().nodename}".encode())


async def main():
    connection = await nats.connect("nats://" + os.environ["NATS"], max_reconnect_attempts=-1, allow_reconnect=True)
    # One of the group gets each question.
    await connection.subscribe("time", queue="tellers", cb=answer)
    print("connected to", connection.connected_url.netloc)
    await asyncio.Event().wait()


asyncio.run(main())
