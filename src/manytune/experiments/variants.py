"""The recipes of a system's trainings: method, learning rate, seed and steps put into the experiment's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from manytune.data.mixing import Mixture
from manytune.data.recipe import DataRecipe
from manytune.data.task_recipe import MixingRecipe, TaskRecipe
from manytune.errors import RecipeError
from manytune.experiments.recipe import Experiment, SystemRecipe
from manytune.experiments.trials import Purpose, Trial, slug, trial_name
from manytune.training.recipe import Recipe

_ONLY_TASK = "task"
_REHEARSAL = "rehearsal"
_DEFAULT_REHEARSAL = ("Continue this text.\n\n{{ beginning }}", "{{ rest }}")


@dataclass(frozen=True)
class Variants:
    """Makes the trials of an experiment.

    Attributes:
        experiment: The experiment.
        mixture: How its tasks are mixed; None for a single one.
    """

    experiment: Experiment
    mixture: Mixture | None

    def trial(
        self, name: str, *, rate: float, seed: int, steps: int, purpose: Purpose = Purpose.RESULT
    ) -> Trial:
        """One training of a system.

        Args:
            name: The system.
            rate: The peak learning rate.
            seed: The training seed.
            steps: Optimizer steps; of a system with an adapter for each task, those of all together.
            purpose: What it is trained for.
        """
        details = [f"lr-{rate:g}", f"seed-{seed}"]
        details += [] if purpose is Purpose.RESULT else [purpose.value]
        label = trial_name(name, *details)
        directory = self.experiment.directory / "trials" / label
        settings = {"learning_rate": rate, "seed": seed}
        system = self.experiment.systems()[name]
        if system.per_task:
            recipes = self._recipes_by_task(system, directory, settings, steps)
        else:
            data = None if system.rehearse is None else self._rehearsing(system.rehearse)
            if system.rows is not None:
                data = self.experiment.recipe.data.model_copy(update={"limit": system.rows})
            recipes = {None: self._recipe(system, directory, settings | {"max_steps": steps}, data)}
        return Trial(name=label, system=name, purpose=purpose, directory=directory, recipes=recipes)

    @property
    def rehearsal_file(self) -> Path:
        """Where the default rows of rehearsal are."""
        return self.experiment.directory / "rehearsal.jsonl"

    def _recipes_by_task(
        self, system: SystemRecipe, directory: Path, settings: Mapping[str, object], steps: int
    ) -> dict[str | None, Recipe]:
        """A recipe for each task, with its share of the steps."""
        recipes: dict[str | None, Recipe] = {}
        done, share_done = 0, 0.0
        for task, share in self._tasks():
            share_done += share
            task_steps = max(1, round(steps * share_done) - done)  # so that they add up to all steps
            done += task_steps
            recipes[task.name] = self._recipe(
                system,
                directory / slug(task.name),
                {**settings, "max_steps": task_steps},
                _alone(self.experiment.recipe.data, task),
            )
        return recipes

    def _recipe(
        self,
        system: SystemRecipe,
        directory: Path,
        settings: Mapping[str, object],
        data: DataRecipe | None,
    ) -> Recipe:
        """The experiment's recipe with a system's method and these training settings, perhaps on other rows."""
        recipe = self.experiment.recipe
        changes = {
            "method": self.experiment.method_of(system),
            "training": recipe.training.model_copy(update=settings),
            "output": str(directory),
            **({} if data is None else {"data": data}),
        }
        return recipe.model_copy(update=changes)

    def _tasks(self) -> list[tuple[TaskRecipe, float]]:
        """The recipe's tasks, each with its share of an epoch; a single one under an invented name."""
        data = self.experiment.recipe.data
        if self.mixture is not None:
            return list(zip(data.tasks, self.mixture.rates, strict=True))
        only = TaskRecipe(
            name=_ONLY_TASK,
            file=data.files,
            prompt=data.prompt,
            completion=data.completion,
            system=data.system,
            template=data.template,
            group_by=data.group_by,
            validation=data.validation,
            test=data.test,
        )
        return [(only, 1.0)]

    def _rehearsing(self, share: float) -> DataRecipe:
        """The training rows mixed with the rows of rehearsal, which make up this share of the examples."""
        wanted = self.experiment.forgetting.rehearsal
        prompt, completion = (wanted.prompt, wanted.completion) if wanted is not None else _DEFAULT_REHEARSAL
        rehearsal = TaskRecipe(
            name=_REHEARSAL,
            file=(wanted.file if wanted is not None else str(self.rehearsal_file),),
            prompt=prompt,
            completion=completion,
            weight=share,
            validation=None,
            test=None,
        )
        tasks = [task.model_copy(update={"weight": (1 - share) * part}) for task, part in self._tasks()]
        if any(task.name == _REHEARSAL for task in tasks):
            raise RecipeError(
                f"a task is called {_REHEARSAL!r}, and so are the rows of `rehearse`; rename it"
            )
        return _of_tasks(
            self.experiment.recipe.data, (*tasks, rehearsal), mixing=MixingRecipe(strategy="explicit")
        )


def steps_by_system(trials: Mapping[str, Trial], *, seconds: float) -> dict[str, int]:
    """How many steps each system can do in so many seconds, from trainings that were timed."""
    return {name: max(1, int(seconds / trial.step_seconds)) for name, trial in trials.items()}


def _alone(data: DataRecipe, task: TaskRecipe) -> DataRecipe:
    return _of_tasks(data, (task.model_copy(update={"weight": None}),), mixing=None)


def _of_tasks(data: DataRecipe, tasks: tuple[TaskRecipe, ...], *, mixing: MixingRecipe | None) -> DataRecipe:
    """A data section with these tasks; what described the rows of a single one is in them now."""
    single = dict.fromkeys(("prompt", "completion", "system", "template", "group_by", "validation", "test"))
    return data.model_copy(update={**single, "train": tasks, "mixing": mixing})
