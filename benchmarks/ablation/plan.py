"""The runs that a recipe file asks for, their order, and the flags of each."""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_cots.models.renamed_fields import RENAMED
from hf_cots.training.arguments import RENAMED_FLAGS


# Names that fields and flags had when the first runs were recorded, by today's names: a run's key hashes the former.
RECORDED_NAMES = {new: old for old, new in (RENAMED | RENAMED_FLAGS).items()}
SETS = ("emoji", "openclipart", "emoji_1000", "openclipart_1000", "icons_3000", "icons_20000", "icons_30000", "icons")
RECIPES = Path(__file__).with_name("recipes.yaml")


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        set: one of [`SETS`]; "emoji_1000" is 1,000 training pairs of emoji.
        init, row: names in the recipes.
        batch, seed: of the training.
        steps: how many the baseline takes.
        budget: `"steps"`, as many as the baseline's; `"time"`, as many as fit the time that the baseline's take.
        noise: fraction of the training captions that are shuffled.
    """

    set: str
    init: str
    row: str
    batch: int
    steps: int
    budget: str
    noise: float
    seed: int

    def __str__(self) -> str:
        noise = f", {self.noise:.0%} noise" if self.noise else ""
        return (
            f"{self.row} on {self.set}, {self.init}, batch {self.batch}, {self.steps} steps by {self.budget}{noise}, "
            f"seed {self.seed}"
        )

    @property
    def group(self) -> tuple:
        """Runs that may be compared: all but row and seed."""
        return (self.set, self.init, self.batch, self.steps, self.budget, self.noise)


class Recipes:
    """A recipe file.

    Args:
        path: of the YAML file.

    Raises:
        FileNotFoundError: if it is not there.
    """

    def __init__(self, path: Path = RECIPES):
        self.content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))

    @property
    def baseline(self) -> str:
        """The row that others are compared with, and whose training time is the budget "time"."""
        return self.content["baseline"]

    def runs(self, smoke: bool = False, **chosen: list) -> list[Run]:
        """List all runs in their order, each once.

        Args:
            smoke: use the smoke stages.
            chosen: replaces a dimension of every stage (`sets`, `inits`, `rows`, ...); empty lists replace nothing.

        Raises:
            ValueError: naming the value that the recipes do not know.
        """
        runs: dict[Run, None] = {}
        for stage in self.content["smoke" if smoke else "stages"]:
            grid = stage | {name: values for name, values in chosen.items() if values}
            if grid["rows"] == "all":
                grid["rows"] = list(self.content["rows"])
            self._check(grid)
            names = ("sets", "inits", "batches", "steps", "noises", "seeds", "budgets", "rows")
            for name, init, batch, steps, noise, seed, budget, row in itertools.product(*(grid[n] for n in names)):
                if row != self.baseline or budget == "steps":  # the baseline's time is that of its steps
                    runs[Run(name, init, row, batch, steps, budget, noise, seed)] = None
        return list(runs)

    def _check(self, grid: dict[str, list]) -> None:
        known = {"inits": self.content["inits"], "rows": self.content["rows"], "batches": self.content["batches"]}
        known |= {"sets": SETS, "budgets": ("steps", "time")}
        for name, values in known.items():
            for value in grid[name]:
                if value not in values:
                    raise ValueError(f"the recipes know no {name} '{value}'; there are {', '.join(map(str, values))}")

    def flags(self, run: Run, steps: int | None = None) -> dict[str, Any]:
        """Build the flags of `hf_cots.train` that a run's recipe sets, all but paths.

        Args:
            run: the run.
            steps: optimizer steps; the run's own by default.
        """
        steps = run.steps if steps is None else steps
        init, row = dict(self.content["inits"][run.init]), dict(self.content["rows"][run.row])
        size = dict(init.pop("batches", self.content["batches"])[run.batch])
        config = self.content["config"] | init.pop("config", {})
        lengths = {name: round(part * steps) for name, part in self.content["fractions_of_steps"].items()}
        rate = size.pop("learning_rate")
        return {
            **self.content["flags"],
            **init,
            **row.pop("flags", {}),
            "learning_rate": rate,
            "max_steps": steps,
            "per_device_train_batch_size": run.batch,
            "seed": run.seed,
            "config_overrides": config | size | lengths | row,
        }

    def key(self, run: Run) -> str:
        """Hash the run and all its flags into 12 hex digits: a changed recipe is a new run, a renamed flag is not."""
        fields = asdict(run) | {"noise": float(run.noise)}  # 0 in a file, 0.0 from the command line
        text = json.dumps([fields, with_recorded_names(self.flags(run))], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def with_recorded_names(flags: dict[str, Any]) -> dict[str, Any]:
    """Replace today's names of flags and config fields by those under which results were first recorded."""
    return {
        RECORDED_NAMES.get(name, name): with_recorded_names(value) if isinstance(value, dict) else value
        for name, value in flags.items()
    }
