"""The runs of a comparison: one for each arm and seed, each an ordinary run in a directory that its name gives.

The name says all that two runs of a comparison may differ in beside their settings: so a second budget finds what the
first one left, baselines and pilots always, trained arms where they have as many steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rayqd.config import Config
from rayqd.config.comparison import ArmSpec, ComparisonSpec
from rayqd.config.resolved import with_absolute_paths
from rayqd.config.settings import settings
from rayqd.driver.frozen import with_frozen_settings
from rayqd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run of a comparison."""

    arm: ArmSpec
    seed: int | None  # None where no seed changes anything
    config: Config  # as it is run
    is_pilot: bool = False  # by which a budget is turned into steps

    @property
    def name(self) -> str:
        """Return the name of its directory."""
        return self.config.name.rpartition("/")[2]

    @property
    def directory(self) -> Path:
        """Return its directory, absolute."""
        return self.config.run_dir


def _default(key: str) -> object:
    return settings()[key].default


class Jobs:
    """Makes the runs of a comparison."""

    def __init__(self, spec: ComparisonSpec) -> None:
        """Check every arm; raises ConfigError at what its settings refuse."""
        self.spec = spec
        asked = with_absolute_paths(spec.config())
        if "/" in asked.name:
            raise ConfigError(f"name = {asked.name}: the name of a comparison has no slash; its runs have")
        if asked.track:
            raise ConfigError("track: the arms of a comparison are not tracked; its own page has all of them")
        self.base = with_frozen_settings(asked)

    def baselines(self) -> list[Job]:
        """Return the runs of arms without training: one of what no seed changes (rounding, models), else one a seed."""
        jobs: list[Job] = []
        for arm in self.spec.arms:
            if arm.trains or not arm.command:
                continue
            # Where no eval.source is named the rows that are held out depend on the one seed that there is.
            steps = {"learner.steps": _default("learner.steps")}  # which must not make other runs of them
            if arm.kind in ("rtn", "model") and self.base.eval.source is not None:
                jobs.append(self._job(arm, None, arm.name, {**steps, "seed": _default("seed")}))
            else:
                jobs += [
                    self._job(arm, seed, f"{arm.name}-seed={seed}", {**steps, "seed": seed}) for seed in self.seeds
                ]
        return jobs

    def pilots(self) -> list[Job]:
        """Return a short run of each arm that trains; none where the budget is steps."""
        compare = self.spec.compare
        if compare.budget == "steps":
            return []
        seed, steps = self.seeds[0], compare.pilot_steps
        values = {"seed": seed, "learner.steps": steps}
        return [
            self._job(arm, seed, f"{arm.name}-pilot-seed={seed}-steps={steps}", values, is_pilot=True)
            for arm in self.trained_arms
        ]

    def trained(self, steps: Mapping[str, int]) -> list[Job]:
        """Return the runs of the arms that train, each for as many `steps` as its arm's name has; seed by seed."""
        return [
            self._job(
                arm,
                seed,
                f"{arm.name}-seed={seed}-steps={steps[arm.name]}",
                {"seed": seed, "learner.steps": steps[arm.name]},
            )
            for seed in self.seeds
            for arm in self.trained_arms
            if arm.name in steps
        ]

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of every arm."""
        return self.spec.compare.seeds

    @property
    def trained_arms(self) -> list[ArmSpec]:
        """Return the arms that train, in their order."""
        return [arm for arm in self.spec.arms if arm.trains]

    def _job(
        self, arm: ArmSpec, seed: int | None, name: str, values: Mapping[str, object], *, is_pilot: bool = False
    ) -> Job:
        config = self.spec.config(arm, {**values, "name": f"{self.base.name}/{name}"})
        config = with_frozen_settings(with_absolute_paths(config), self.base.run_dir)
        return Job(arm=arm, seed=seed, config=config, is_pilot=is_pilot)
