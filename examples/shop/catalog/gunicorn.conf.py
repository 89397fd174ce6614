"""Starts the stock server beside the HTTP workers' own ports."""


def post_worker_init(worker):
    # In the one worker, not in the arbiter: a process that forks should have no threads.
    import stock

    stock.start()
