"""The other end of `tokenizer_processes`: what runs in each of the processes."""

from __future__ import annotations

import gc
import pickle
import signal
from multiprocessing.connection import Connection

from rayqd.errors import RayqdError

READY = "ready"


def serve(handle: int) -> None:
    """Get a `RowTokenizer` by the pipe `handle`, then answer rows with their tokens until nobody asks any more.

    Ctrl-C is for who started this process, which ends with the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(handle) as connection:
        tokenize = pickle.loads(connection.recv_bytes())
        gc.freeze()  # modules and tokenizer stay, and need not be looked through again and again
        connection.send(READY)
        try:
            while True:
                rows = connection.recv()
                try:
                    connection.send(tokenize(rows))
                except RayqdError as error:
                    connection.send(error)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
