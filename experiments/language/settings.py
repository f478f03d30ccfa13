"""Parameters of a run."""

from dataclasses import dataclass
from typing import NamedTuple

FIRST = "Shakespeare"  # default first domain
LR = 1e-3  # learning rate of the first stage, and default for the later ones


class Scale(NamedTuple):
    """Sizes of the network, of a batch, and of the three stages."""

    layers: int
    width: int
    heads: int
    context: int
    batch: int
    steps: tuple[int, ...]

    @property
    def form(self) -> str:
        """Command-line options for the network and the stages.

        >>> QUICK.form, FULL.form
        ('--quick --steps 400 150 50', '--steps 1500 400 200')
        """
        return f"{'--quick ' * self.small}--steps {' '.join(map(str, self.steps))}"

    @property
    def small(self) -> bool:
        """Whether the network is the one of ``--quick``."""
        return self.width == QUICK.width


FULL = Scale(layers=4, width=128, heads=4, context=128, batch=32, steps=(1500, 400, 200))
QUICK = Scale(layers=2, width=32, heads=2, context=64, batch=16, steps=(400, 150, 50))


@dataclass(frozen=True)
class Settings:
    """Parameters of one run."""

    method: str
    strength: float
    seed: int
    lr: float = LR  # from the second stage on
    scale: Scale = FULL
    text: str = FIRST  # the first domain's name

    @property
    def name(self) -> str:
        """File name of the run.

        >>> Settings("l2", 0.01, seed=0).name
        'Shakespeare-l2-0.01-lr0.001-width128-steps1500-400-200-seed0'
        """
        steps = "-".join(map(str, self.scale.steps))
        kind = f"{self.text}-{self.method}-{self.strength:g}-lr{self.lr:g}"
        return f"{kind}-width{self.scale.width}-steps{steps}-seed{self.seed}"

    @property
    def command(self) -> str:
        """The command line that repeats this run.

        >>> Settings("l2", 0.01, seed=0).command
        'python -m experiments.language --steps 1500 400 200 --methods l2 --strengths 0.01 --lr 0.001 --seeds 0'
        """
        text = "" if self.text == FIRST else f" --data {self.text}.txt"
        run = f"--methods {self.method} --strengths {self.strength:g} --lr {self.lr:g}"
        return f"python -m experiments.language {self.scale.form}{text} {run} --seeds {self.seed}"
