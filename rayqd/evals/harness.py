"""lm-evaluation-harness: the one file that knows it. Tasks are found and read before any model is loaded."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayqd.config.sections import EvalConfig
from rayqd.console.quiet import quiet_libraries
from rayqd.data.chat_settings import ChatSettings
from rayqd.errors import ConfigError, DataError, ModelError
from rayqd.evals.answers import AnswerCount
from rayqd.evals.language_model import Asking, LanguageModel
from rayqd.evals.local_data import expand, write_task_files
from rayqd.evals.results import read_scores
from rayqd.evals.scores import Scores
from rayqd.metrics.fidelity import value_name

_OWN_TASKS = Path(__file__).parent / "tasks"
_MOST_HINTS = 3  # names near one that there is not
_MOST_EXAMPLES = 10_000  # of the few-shot examples, that a fingerprint reads


class Benchmark:
    """A task, group or tag of lm-eval, by the name under which it was asked for."""

    def __init__(self, name: str, loaded: Any, settings: EvalConfig, chat: ChatSettings) -> None:
        self.name = name
        self._chat = chat
        self._loaded = loaded  # lm-eval's {"tasks": {name: Task}, "groups": {name: Group}}
        self._settings = settings

    @property
    def generates(self) -> bool:
        """Whether the model answers in its own words."""
        return any(task.OUTPUT_TYPE == "generate_until" for task in self._loaded["tasks"].values())

    def aggregation(self, task: str, metric: str) -> Callable[[Sequence[Any]], float] | None:
        """Return the function that makes a score of the documents' values; None for their mean."""
        from lm_eval.api.metrics import mean

        function = self._loaded["tasks"][task].aggregation().get(metric, mean)
        return None if function is mean else function

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what is asked, and of lm-eval's version: the same one gives the same scores of the same model."""
        settings = self._settings
        asked = {
            "lm_eval": version("lm_eval"),
            "name": self.name,
            "limit": settings.task_limit,
            "num_fewshot": settings.num_fewshot,
            "apply_chat_template": settings.apply_chat_template,
        }
        if settings.task_max_new_tokens or settings.think_end:
            asked |= {"max_new_tokens": settings.task_max_new_tokens, "think_end": settings.think_end}
        if settings.apply_chat_template and (self._chat.kwargs != "{}" or self._chat.date):
            asked |= {"chat_template_kwargs": self._chat.kwargs, "date": self._chat.date}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
        for name, task in sorted(self._loaded["tasks"].items()):
            parts = [name, task.dump_config(), *islice(task.eval_docs, settings.task_limit)]
            if task.config.num_fewshot:
                parts += islice(task.fewshot_docs(), _MOST_EXAMPLES)
            for part in parts:
                digest.update(json.dumps(part, sort_keys=True, default=_name_of).encode())
        return digest.hexdigest()

    def run(self, model: LanguageModel, batch_size: int | None = None) -> Scores:
        """Score the model, document by document, as `lm_eval run` does. Raises ModelError.

        `batch_size`: sequences at a time; `eval.task_batch_size` unless given.
        """
        from lm_eval.evaluator import evaluate

        settings = self._settings
        template = settings.apply_chat_template
        asking = Asking(
            batch_size=batch_size or settings.task_batch_size,
            chat_variables=self._chat.variables,
            think_end=settings.think_end,
        )
        answers = AnswerCount()
        with _quiet(), model.answering(asking, answers) as language_model, _seeded():
            try:
                results = evaluate(
                    lm=language_model,
                    task_dict=self._loaded,
                    limit=settings.task_limit,
                    apply_chat_template=template,
                    fewshot_as_multiturn=template,
                )
            except (AssertionError, ValueError, KeyError, TypeError) as error:  # of its own checks, or of a document
                raise ModelError(f"lm-eval cannot run task {self.name}: {first_line(error)}") from error
        assert results is not None  # on rank 0
        return replace(
            read_scores(results, self._loaded),
            num_answers=answers.num_all,
            num_cut=answers.num_cut,
            num_shortened=answers.num_shortened,
            num_windowed=answers.num_windowed,
            window=answers.window,
        )

    def metric_names(self) -> list[str]:
        """Return the names that its values have, as TASK/METRIC, those of groups first."""
        filters = {
            (name, metric): [each.name for each in task._filters]
            for name, task in self._loaded["tasks"].items()
            for metric in task.aggregation()
        }
        groups = [
            value_name(name, each.metric, filtered)
            for name, group in self._loaded["groups"].items()
            for each in group.aggregate_metric_list or []
            for filtered in _filters_of(group, each, filters)
        ]
        return groups or [value_name(task, metric, each) for (task, metric), own in filters.items() for each in own]


def _filters_of(group: Any, setting: Any, filters: Mapping[tuple[str, str], Sequence[str]]) -> list[str]:
    """Return the filters by which a group's metric is aggregated: those of its tasks, or of these the ones it names."""
    own = dict.fromkeys(
        each for task in group.get_all_tasks() for each in filters.get((task.task_name, setting.metric), ())
    )
    return [each for each in own if setting.filter_list is None or each in setting.filter_list]


def open_benchmarks(
    settings: EvalConfig,
    tokenizer: Any,
    chat: ChatSettings | None = None,
    on_skipped: Callable[[str], None] | None = None,
) -> list[Benchmark]:
    """Load the tasks of `settings.tasks`, with their documents; `chat` has the variables of the chat template.

    Of several tasks those whose documents cannot be had are left out, and `on_skipped` told why. Raises ConfigError at
    a name that there is not, a missing template or package, DataError where no documents at all can be had.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError('eval.tasks needs lm-evaluation-harness: pip install "rayqd[eval]"')
    if settings.apply_chat_template and not tokenizer.chat_template:
        raise ConfigError("eval.apply_chat_template: the model has no chat template; leave it out for a base model")
    if settings.tasks_dir and not settings.tasks_dir.expanduser().is_dir():
        raise ConfigError(f"eval.tasks_dir={settings.tasks_dir} is no directory")
    settings = settings.model_copy(update={"tasks": expand(settings.tasks)})
    if strange := [name for name in settings.local_data if name not in settings.tasks]:
        raise ConfigError(f"eval.local_data: {strange[0]} is not among eval.tasks ({', '.join(settings.tasks)})")
    with _quiet():
        manager = _manager(settings)
        opened: list[Benchmark] = []
        skipped: list[DataError] = []
        for name in settings.tasks:
            try:
                opened.append(_open(name, manager, settings, chat or ChatSettings()))
            except DataError as error:
                skipped.append(error)
    if skipped and (not opened or on_skipped is None):
        raise skipped[0]
    for error in skipped:
        assert on_skipped is not None
        on_skipped(str(error))
    return opened


def _manager(settings: EvalConfig) -> Any:
    """Index rayqd's and the user's tasks, those of `eval.local_data` before others of their name.

    lm-eval's 14,000 files, which take seconds, too where one of them is asked for.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    paths: list[str | Path] = [_OWN_TASKS, *([settings.tasks_dir.expanduser()] if settings.tasks_dir else [])]
    paths += [write_task_files(settings.local_data)] if settings.local_data else []
    own = TaskManager(include_path=paths, include_defaults=False)
    if all(name in own.task_index and own.task_index[name].kind != Kind.GROUP for name in settings.tasks):
        return own
    manager = TaskManager(include_path=paths)
    for name in settings.tasks:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=_MOST_HINTS)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm_eval ls tasks` lists lm-eval's"
            raise ConfigError(f'eval.tasks: there is no task "{name}"; {hint}')
    return manager


def _open(name: str, manager: Any, settings: EvalConfig, chat: ChatSettings) -> Benchmark:
    from datasets.exceptions import DatasetsError

    try:
        loaded = manager.load([name])
        for task in loaded["tasks"].values():
            len(task.eval_docs)
    except ImportError as error:
        raise ConfigError(f"task {name} needs another package: {first_line(error)}") from error
    except (OSError, DatasetsError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(_explain_not_loaded(name, error)) from error
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(
                f"task {name} runs code that the model writes: use lm_eval itself with --confirm_run_unsafe_code"
            )
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"task {name} has images or sound, and rayqd's models read text")
        _set_fewshot(task, settings.num_fewshot)
        if settings.task_max_new_tokens and task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": settings.task_max_new_tokens}, update=True)
    return Benchmark(name, loaded, settings, chat)


def _explain_not_loaded(name: str, error: Exception) -> str:
    reason = first_line(error)
    if isinstance(error, ConnectionError):
        return (
            f"task {name} needs a data set from the Hugging Face hub, which cannot be reached ({reason}): load it once "
            "where there is a network and bring HF_HOME along, or give a task of your own in eval.tasks_dir"
        )
    return f"task {name} cannot be loaded: {type(error).__name__}: {reason}"


def _set_fewshot(task: Any, num_fewshot: int | None) -> None:
    """Set it as lm-eval's simple_evaluate does: a task that says 0 keeps it, one that says nothing has 0."""
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=_defaults().DEFAULT_OTHER_SEED)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed with lm-eval's own, for so long: a run that trains has a state of its own."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        random.seed(_defaults().DEFAULT_RANDOM_SEED)
        np.random.seed(_defaults().DEFAULT_OTHER_SEED)
        torch.manual_seed(_defaults().DEFAULT_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _defaults() -> Any:
    from lm_eval import defaults

    return defaults


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let through progress bars on a terminal, and nothing else."""
    for name in ("lm_eval", "huggingface_hub", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with quiet_libraries(progress=sys.stderr.isatty()), contextlib.redirect_stdout(io.StringIO()):
        yield


def _name_of(value: object) -> str:
    """Name what JSON cannot hold: a function by its name, since its address is another one every time."""
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
