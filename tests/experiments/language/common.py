"""Two small texts that differ, and a network that learns them in no time."""

from experiments.language.settings import Scale
from experiments.language.stages import Domains
from experiments.language.text import split

SCALE = Scale(layers=1, width=16, heads=2, context=16, batch=8, steps=(16, 8, 4))
DOMAINS = Domains(split("letters", b"the quick brown fox " * 200), split("digits", b"3.14159 26535 89793;" * 200))
