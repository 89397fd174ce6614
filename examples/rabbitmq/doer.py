"""Takes jobs one at a time and confirms each when it is done, so that none is lost when this process is."""

import time

import pika.exceptions

import broker


def do(channel, method, properties, body):
    print("done:", body.decode())
    channel.basic_ack(method.delivery_tag)


while True:
    try:
        channel = broker.channel()
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(broker.QUEUE, do)
        channel.start_consuming()
    except (pika.exceptions.AMQPError, OSError) as error:
        print("rabbitmq is not ready:", repr(error))
        time.sleep(2)
