"""Parameters of a run."""

from dataclasses import asdict, dataclass, field

LR = 2e-4  # of full fine-tuning
LORA_LR = 1e-3  # of adapters


@dataclass(frozen=True)
class Scale:
    """Sizes of a batch, of the stages, and of the texts that are measured."""

    context: int = 96  # tokens a row
    batch: int = 4  # rows a step
    steps: int = 150  # of each stage
    samples: int = 32  # texts of the model's own that methods may use
    measured: int = 24  # rows of each text that is measured
    precision: str = "bf16-mixed"  # Lightning's precision of training; measures are in single precision

    @property
    def form(self) -> str:
        """Command-line options.

        >>> Scale().form, Scale(steps=40).form
        ('', '--steps 40 ')
        """
        given, default = asdict(self), asdict(Scale())
        return "".join(f"--{name} {value} " for name, value in given.items() if value != default[name])


@dataclass(frozen=True)
class Settings:
    """Parameters of one run."""

    stream: str
    method: str
    strength: float
    lr: float
    seed: int
    model: str  # the folder's name
    scale: Scale = field(default_factory=Scale)

    @property
    def texts(self) -> list[str]:
        """The new texts, in order.

        >>> Settings("german-code", "sal", 1, 2e-4, 0, "smollm2").texts
        ['german', 'code']
        """
        return self.stream.split("-")

    @property
    def name(self) -> str:
        """File name of the run.

        >>> Settings("german", "ewc", 0.03, 2e-4, 0, "smollm2").name
        'smollm2-german-ewc-0.03-lr0.0002-context96-batch4-steps150-samples32-measured24-precisionbf16-mixed-seed0'
        """
        sizes = "-".join(f"{name}{value}" for name, value in asdict(self.scale).items())
        return f"{self.model}-{self.stream}-{self.method}-{self.strength:g}-lr{self.lr:g}-{sizes}-seed{self.seed}"

    @property
    def command(self) -> str:
        """The command line that repeats this run.

        >>> Settings("german", "l2", 0.1, 2e-4, 0, "M").command[22:]
        'finetune --model M --texts FOLDER --streams german --methods l2 --strengths 0.1 --lr 0.0002 --seeds 0'
        """
        run = f"--streams {self.stream} --methods {self.method} --strengths {self.strength:g} --lr {self.lr:g}"
        folders = f"--model {self.model} --texts FOLDER"
        return f"python -m experiments.finetune {folders} {self.scale.form}{run} --seeds {self.seed}"
