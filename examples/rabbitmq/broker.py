"""A connection to RabbitMQ and the queue that both sides use."""

import os

import pika

QUEUE = "jobs"


def channel():
    credentials = pika.PlainCredentials(os.environ["AMQP_USER"], os.environ["AMQP_PASSWORD"])
    parameters = pika.ConnectionParameters(os.environ["AMQP_HOST"], 5672, credentials=credentials, heartbeat=30)
    channel = pika.BlockingConnection(parameters).channel()
    channel.queue_declare(QUEUE, durable=True)
    return channel
