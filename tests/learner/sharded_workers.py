"""What each of two workers with half the weights does, and one that has them all; results are left as files.

Each in a process of its own: the order in which products are added up depends on what a process has done before.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn as spawn_processes

from rayqd.config import Config
from rayqd.config.sections import CheckpointConfig, EvalConfig
from rayqd.evals.heldout import Heldout
from rayqd.learner.benchmarks import StudentBenchmarks
from rayqd.learner.checkpoint import Checkpoints, load_checkpoint
from rayqd.learner.checkpointer import Checkpointer
from rayqd.learner.distributed import DistributedGroup, SingleProcess
from rayqd.learner.evaluations import Evaluations
from rayqd.learner.learner import Learner
from rayqd.learner.loop import train
from rayqd.learner.rollout_weights import pack_weights
from rayqd.metrics.fidelity import Fidelity
from rayqd.model.load import load_model
from rayqd.model.student import Student
from rayqd.types import ScoredRollout
from tests.learner.fake_feed import FakeFeed

# Which sequences each worker takes at each step: unequal numbers of them, none at all, and one worker's order of adding
# up the same gradients: those of the first microbatches, of the second ones, and so on.
SHARES = [([0, 1, 2], [3]), ([4, 0], []), ([], [1])]
ORDERS = [[0, 3, 1, 2], [4, 0], [1]]


def make(directory: Path, config: Config, group: SingleProcess) -> Learner:
    student = Student(load_model(directory, config.model.dtype), config, mesh=group.mesh)
    return Learner(student, student.head, config, group)


def steps(
    learner: Learner, batch: Sequence[ScoredRollout], indices: Mapping[int, Sequence[int]], num_loss_tokens: int
) -> list[tuple[float, float]]:
    """Loss and norm of the gradient of each."""
    done = [learner.step(step, [batch[i] for i in share], num_loss_tokens) for step, share in indices.items()]
    return [(result.loss, result.grad_norm) for result in done]


class Feed(FakeFeed):
    """Gives this worker's shares; once the third is asked for, the run is told to stop."""

    def __init__(self, batch: list[ScoredRollout], rank: int, late_seconds: float) -> None:
        super().__init__(batch)
        self._rank = rank
        self.at_batch[2] = lambda: threading.Timer(late_seconds, self._stop).start()
        self.stopped = threading.Event()
        self.kept: int | None = None

    def share(self, step: int) -> list[ScoredRollout]:
        rows = super().share(step)
        return [rows[i] for i in SHARES[step % len(SHARES)][self._rank]]

    def _stop(self) -> None:
        self.kept = self.stop()
        self.stopped.set()


def spawn(work: Callable[..., dict[str, Any]], num_processes: int, directory: Path, **given: Any) -> list[Any]:
    """Runs `work` so many times; what each found, in their order."""
    (directory / "given.pickle").write_bytes(pickle.dumps((work, given)))
    spawn_processes(_process, (str(directory),), nprocs=num_processes)
    return [torch.load(directory / f"found-{rank}.pt", weights_only=False) for rank in range(num_processes)]


def _process(rank: int, where: str) -> None:
    directory = Path(where)
    work, given = pickle.loads((directory / "given.pickle").read_bytes())
    torch.set_num_threads(1)
    torch.save(work(rank, directory, given), directory / f"found-{rank}.pt")


def alone(rank: int, directory: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What one worker does; a checkpoint of its first step is left for two to go on from."""
    del rank
    found: dict[str, Any] = {}
    for name, config in given["configs"].items():
        batch = given["batches"][name]
        learner = make(given["model"], config, SingleProcess())
        results = steps(learner, batch, {0: ORDERS[0]}, 35)
        if name == "plain":
            Checkpoints(directory / "one-worker", keep=1).save(1, learner.state_dict())
        results += steps(learner, batch, {1: ORDERS[1], 2: ORDERS[2]}, 35)
        found[name] = {
            "results": results,
            "state": learner.state_dict(),
            "codes": pack_weights(learner.student),
            "fidelity": Heldout(batch, None, 40).evaluate(learner.student),
            "own_bytes": sum(p.nbytes for p in learner.student.parameters().values()),
        }
    return found


def alone_from_the_checkpoint_of_two(rank: int, directory: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The third step, after the two that the others had done when they were stopped."""
    del rank
    learner = make(given["model"], given["configs"]["plain"], SingleProcess())
    checkpoint = load_checkpoint(directory / "stopped" / "0" / "step-000002")
    learner.load_state_dict(checkpoint)
    steps(learner, given["batches"]["plain"], {2: ORDERS[2]}, 35)
    return {
        "state": learner.state_dict(),
        "num_digests": len(checkpoint["digests"]),
        "num_layers": len(learner.student.layers),
    }


def one_of_two(rank: int, directory: Path, given: dict[str, Any]) -> dict[str, Any]:
    distributed.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    group = DistributedGroup(torch.device("cpu"), is_sharded=True)
    found = {name: _scenario(rank, group, given, name) for name in given["configs"]}
    found["resumed"] = _resumed(rank, group, given, directory)
    found["stopped"] = _stopped(rank, group, given, directory / "stopped")
    found["stopped apart"] = _stopped(rank, group, given, directory / "apart", late_seconds=0.5 * rank)
    found["best"] = _best(rank, group, given, directory / "best")
    found["two orders"] = _in_two_orders(rank, group)
    group.barrier()
    distributed.destroy_process_group()
    return found


def _in_two_orders(rank: int, group: SingleProcess) -> dict[str, Any]:
    """One thread hears of the first worker's value and another gathers both, each worker in its own order."""
    found: dict[str, Any] = {}
    threads = [
        threading.Thread(target=lambda: found.update(sent=group.from_rank0("trained" * (rank + 1))), daemon=True),
        threading.Thread(target=lambda: found.update(gathered=group.all_gather_object(rank)), daemon=True),
    ]
    for thread in threads if rank == 0 else reversed(threads):
        thread.start()
        thread.join(0.5)  # it waits for the other worker, which begins with the other thread
    for thread in threads:
        thread.join(20)
    return found


def _scenario(rank: int, group: SingleProcess, given: dict[str, Any], name: str) -> dict[str, Any]:
    batch = given["batches"][name]
    learner = make(given["model"], given["configs"][name], group)
    shares = {step: share[rank] for step, share in enumerate(SHARES)}
    results = steps(learner, batch, shares, 35)
    own_bytes = sum(p.to_local().nbytes for p in learner.student.parameters().values())
    return {
        "results": results,
        "state": group.gather_full(learner.state_dict()),
        "codes": pack_weights(learner.student),
        "fidelity": Heldout(batch, None, 40).evaluate(learner.student),
        "own_bytes": own_bytes,
    }


def _resumed(rank: int, group: SingleProcess, given: dict[str, Any], directory: Path) -> dict[str, dict[str, Tensor]]:
    """From one worker's checkpoint of the first step."""
    learner = make(given["model"], given["configs"]["plain"], group)
    learner.load_state_dict(load_checkpoint(directory / "one-worker" / "step-000001"))
    steps(learner, given["batches"]["plain"], {step: SHARES[step][rank] for step in (1, 2)}, 35)
    return group.gather_full(learner.state_dict())


def _stopped(
    rank: int, group: SingleProcess, given: dict[str, Any], directory: Path, late_seconds: float = 0.0
) -> dict[str, Any]:
    """Both are told in the middle of step 3, one perhaps when that is past; both stay where they are."""
    checkpoints = Checkpoints(directory / str(rank), keep=2)
    learner = make(given["model"], given["configs"]["plain"], group)
    feed = Feed(given["batches"]["plain"], rank, late_seconds)
    config = given["configs"]["plain"]
    options: dict[str, Any] = {"evaluate": lambda: None, "benchmarks": StudentBenchmarks(config, learner, feed)}
    arguments = (
        learner,
        feed,
        Checkpointer(learner, checkpoints, Evaluations(given["configs"]["plain"])),
        given["configs"]["plain"],
    )
    training = threading.Thread(target=train, args=arguments, kwargs=options, daemon=True)
    training.start()
    assert feed.stopped.wait(60)
    group.all_gather_object(None)  # the side group is free again
    return {"kept": feed.kept, "steps": checkpoints.steps(), "published": sorted(feed.published)}


def _best(rank: int, group: SingleProcess, given: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Each has another opinion of what is best, and a directory of its own: the first one's counts, to both."""
    config = given["configs"]["plain"].model_copy(update={"checkpoint": CheckpointConfig(best="kl_to_teacher")})
    config = config.model_copy(update={"eval": EvalConfig(every=1, patience=1)})
    values = iter([0.3, 0.1, 0.2] if rank == 0 else [0.1, 0.2, 0.3])
    checkpoints = Checkpoints(directory / str(rank), keep=2)
    learner = make(given["model"], config, group)
    feed = Feed(given["batches"]["plain"], rank, late_seconds=0.0)
    feed.at_batch.clear()  # no stop
    checkpointer = Checkpointer(learner, checkpoints, Evaluations(config))
    benchmarks = StudentBenchmarks(config, learner, feed)
    train(learner, feed, checkpointer, config, evaluate=lambda: _fidelity(next(values)), benchmarks=benchmarks)
    return {
        "num_steps": checkpointer.num_steps,
        "step": checkpointer.load_best(),
        "kept": checkpoints.best_steps(),
        "state": group.gather_full(learner.state_dict())["student"],
    }


def _fidelity(kl: float) -> Fidelity:
    return Fidelity(kl_to_teacher=kl, total_variation=0.1, top1_agreement=0.5, perplexity=9.0, num_tokens=4)
