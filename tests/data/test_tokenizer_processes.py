import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rayqd.data import tokenizer_processes
from rayqd.data.chat_settings import ChatSettings
from rayqd.data.conversation import RowParser
from rayqd.data.row_tokenizer import RowTokenizer, TokenizedRows
from rayqd.data.tokenizer_processes import MIN_ROWS, TokenizerProcesses
from rayqd.errors import WorkerError

ROWS: list[tuple[int, Any]] = [
    *((i, {"prompt": f"{i}?", "completion": f"\n\n{i}!"}) for i in range(200)),
    (200, {"prompt": "a"}),
    (201, 7),
    (202, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}),
]


@pytest.fixture
def tokenize(make_tokenizer: Any) -> RowTokenizer:
    return RowTokenizer(tokenizer=make_tokenizer(), parse=RowParser(), chat=ChatSettings(train_on="all"))


def _same(one: TokenizedRows, other: TokenizedRows) -> bool:
    parts = [
        (e.row, e.prompt_ids.tolist(), e.completion_ids.tolist(), None if e.trained is None else e.trained.tolist())
        for e in one.examples
    ]
    others = [
        (e.row, e.prompt_ids.tolist(), e.completion_ids.tolist(), None if e.trained is None else e.trained.tolist())
        for e in other.examples
    ]
    about = (one.keys.tolist(), list(one.shapes), one.faults) == (other.keys.tolist(), list(other.shapes), other.faults)
    return parts == others and about


def _wait_until_ready(processes: TokenizerProcesses, number: int) -> None:
    until = time.monotonic() + 120
    while processes.num_batches_ahead < 2 * number + 1:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_processes_give_what_is_given_here_and_are_gone_afterwards(
    tokenize: RowTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_processes, "_num_cores", lambda: 2)
    wanted = tokenize(ROWS)
    assert {fault.reason for fault in wanted.faults.values()} == {"broken", "of weight 0"}
    with TokenizerProcesses(tokenize, num_rows=MIN_ROWS) as processes:
        _wait_until_ready(processes, 2)
        futures = [processes.submit(ROWS) for _ in range(4)]
        assert all(_same(future.result(), wanted) for future in futures)
        pids = [process._child.pid for process in processes._all]
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGINT)  # Ctrl-C is for who started them
        assert _same(processes.submit(ROWS).result(), wanted)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"a process that tokenizes rows was killed by signal 9.*more memory"):
            processes.submit(ROWS).result()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_few_rows_and_tokenizers_that_cannot_travel_are_tokenized_here(
    tokenize: RowTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_processes, "_num_cores", lambda: 2)
    with TokenizerProcesses(tokenize, num_rows=MIN_ROWS - 1) as processes:
        assert not processes._all
        assert _same(processes.submit(ROWS).result(), tokenize(ROWS))
    with TokenizerProcesses(
        RowTokenizer(tokenizer=tokenize.tokenizer, parse=lambda row: RowParser()(row), chat=tokenize.chat),
        num_rows=MIN_ROWS,
    ) as processes:
        assert not processes._all
        assert _same(processes.submit(ROWS).result(), tokenize(ROWS))
