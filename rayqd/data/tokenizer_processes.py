"""Processes that tokenize rows, as many as there are cores. They end with who started them, however that ends.

They get the tokenizer once and then rows, and see neither files nor the user's code. Until the first is ready, and
where they cannot be had (a tokenizer that cannot be pickled), rows are tokenized here.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from rayqd.child_process import ChildProcess
from rayqd.data.row_tokenizer import RowTokenizer, TokenizedRows
from rayqd.data.tokenizer_process import READY
from rayqd.errors import RayqdError, WorkerError

MIN_ROWS = 16_384  # below which the processes' start would take longer than the rows
_MOST_PROCESSES = 32


class TokenizerProcesses:
    """To be used in a `with`, at whose end the processes are gone."""

    def __init__(self, tokenize: RowTokenizer, num_rows: int) -> None:
        """Start them, unless `num_rows` are too few; nobody waits until they are ready."""
        self._tokenize = tokenize
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._all: list[_Process] = []
        self._lock = threading.Lock()
        self._num_ready = 0
        self._is_closed = False
        number = min(_MOST_PROCESSES, _num_cores()) if num_rows >= MIN_ROWS else 0
        self._threads = ThreadPoolExecutor(max(1, number), thread_name_prefix="tokenize") if number > 1 else None
        self._starters: list[threading.Thread] = []
        if self._threads is not None and (pickled := _pickle(tokenize)) is not None:
            for _ in range(number):
                starter = threading.Thread(target=self._start, args=(pickled,), daemon=True)
                starter.start()
                self._starters.append(starter)

    def __enter__(self) -> TokenizerProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def num_batches_ahead(self) -> int:
        """Batches to hand in before the first one's result is waited for."""
        return 2 * self._num_ready + 1 if self._num_ready else 1

    def submit(self, rows: Sequence[tuple[int, Any]]) -> Future[TokenizedRows]:
        """Have `rows` tokenized. The result raises WorkerError where the process dies, and what `RowTokenizer` does."""
        if self._num_ready and self._threads is not None:
            return self._threads.submit(self._run, rows)
        done: Future[TokenizedRows] = Future()
        done.set_result(self._tokenize(rows))
        return done

    def close(self) -> None:
        """End the processes, also in the middle of their work."""
        with self._lock:
            self._is_closed = True
            processes = list(self._all)
        for process in processes:
            process.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for starter in self._starters:
            starter.join()
        for process in processes:
            process.wait()

    def _start(self, pickled: bytes) -> None:
        with self._lock:
            if self._is_closed:
                return
            process = _Process()
            self._all.append(process)
        if process.prepare(pickled):
            self._idle.put(process)
            with self._lock:
                self._num_ready += 1

    def _run(self, rows: Sequence[tuple[int, Any]]) -> TokenizedRows:
        process = self._idle.get()
        try:
            return process.tokenize(rows)
        finally:
            self._idle.put(process)


class _Process:
    """One of them, seen from here."""

    def __init__(self) -> None:
        environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self._child = ChildProcess("rayqd.data.tokenizer_process", environment)

    def prepare(self, pickled: bytes) -> bool:
        """Give it the tokenizer; return whether it can use that."""
        try:
            self._child.connection.send_bytes(pickled)
            return self._child.connection.recv() == READY
        except (EOFError, OSError):
            return False

    def tokenize(self, rows: Sequence[tuple[int, Any]]) -> TokenizedRows:
        """Return what the rows come to there."""
        try:
            self._child.connection.send(rows)
            result = self._child.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(self._explain_end()) from error
        if isinstance(result, RayqdError):
            raise result
        return result

    def kill(self) -> None:
        self._child.kill()

    def wait(self) -> None:
        self._child.wait()
        self._child.close()

    def _explain_end(self) -> str:
        code = self._child.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = self._child.last_words()
        why = f" ({last})" if last else ""
        return f"a process that tokenizes rows {how}{why}: run again, with more memory free if the system killed it"


def _pickle(tokenize: RowTokenizer) -> bytes | None:
    """Return None for what no other process can have: code of the user's script, or an object that cannot travel."""
    try:
        return pickle.dumps(tokenize)
    except (pickle.PicklingError, TypeError, AttributeError):
        return None


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
