"""One class a library, each of which is imported where it is first needed."""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# The libraries are optional, and partly without types.

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

from rayqd.trackers.tracker import Outcome, TrackedRun, Tracker

_MOST_CHARACTERS = 500  # of an MLflow parameter; longer ones are refused by its servers


class TensorBoardTracker:
    """Event files in `tensorboard/` of the run's directory: `tensorboard --logdir runs`."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run.directory / "tensorboard"))
        lines = "\n".join(f"    {key} = {value}" for key, value in run.settings.items())
        self._writer.add_text("settings", lines, 0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write a scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, outcome: Outcome | None) -> None:
        """Write verdict and table as Markdown."""
        if outcome:
            self._writer.add_text("verdict", outcome.sentence, 0)
            self._writer.add_text("result", _markdown(outcome), 0)
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in the run's directory."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            id=run.run_id,
            resume="allow",
            dir=str(run.directory),
            config=dict(run.settings),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log them at once."""
        self._run.log(dict(values), step=step)

    def finish(self, outcome: Outcome | None) -> None:
        """Log table, report and final numbers."""
        if outcome:
            table = self._wandb.Table(columns=list(outcome.columns), data=[list(row) for row in outcome.rows])
            self._run.log({"result": table})
            self._run.summary.update({**outcome.summary, "verdict": outcome.sentence})
            for file in outcome.files:
                if file.suffix == ".html":
                    self._run.log({"report": self._wandb.Html(file.read_text(encoding="utf-8"), inject=False)})
                self._run.save(str(file), base_path=str(file.parent), policy="now")
        self._run.finish(exit_code=0 if outcome else 1)


class MLflowTracker:
    """A run of MLflow, where MLFLOW_TRACKING_URI says."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        experiment = self._client.get_experiment_by_name(run.project)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        self._id: str = self._find(experiment_id, run) or self._begin(experiment_id, run)

    def _find(self, experiment_id: str, run: TrackedRun) -> str | None:
        found = self._client.search_runs([experiment_id], f"tags.rayqd_run_id = '{run.run_id}'", max_results=1)
        if found:
            self._client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0].info.run_id if found else None

    def _begin(self, experiment_id: str, run: TrackedRun) -> str:
        begun = self._client.create_run(experiment_id, run_name=run.name, tags={"rayqd_run_id": run.run_id})
        for key, value in run.settings.items():
            self._client.log_param(begun.info.run_id, key, str(value)[:_MOST_CHARACTERS])
        return begun.info.run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log them in one request."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(_plain(k), v, now, step) for k, v in values.items()])

    def finish(self, outcome: Outcome | None) -> None:
        """Log table, report and final numbers."""
        if outcome:
            self._client.set_tag(self._id, "verdict", outcome.sentence)
            rows = {c: [row[i] for row in outcome.rows] for i, c in enumerate(outcome.columns)}
            self._client.log_dict(self._id, rows, "table.json")
            for file in outcome.files:
                self._client.log_artifact(self._id, str(file))
        self._client.set_terminated(self._id, "FINISHED" if outcome else "KILLED")


class TrackioTracker:
    """A run of Trackio, in its own local store or the Space that TRACKIO_SPACE_ID names."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._trackio: Any = trackio
        # Its runs are resumed by name.
        trackio.init(project=run.project, name=run.name, config=dict(run.settings), resume="allow", embed=False)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log them at once."""
        self._trackio.log(dict(values), step=step)

    def finish(self, outcome: Outcome | None) -> None:
        """Log the final numbers and the table; it keeps no files."""
        if outcome:
            self._trackio.log({f"final/{name}": value for name, value in outcome.summary.items()})
        self._trackio.finish()


LIBRARIES: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MLflowTracker,
    "trackio": TrackioTracker,
}


def _plain(name: str) -> str:
    """Return a name that MLflow takes: letters, digits, and _ - . / and spaces."""
    return "".join(each if each.isalnum() or each in "_-. /" else "_" for each in name)


def _markdown(outcome: Outcome) -> str:
    rows = [[html.escape(str(cell)) for cell in row] for row in outcome.rows]
    lines = [list(outcome.columns), ["---"] * len(outcome.columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
