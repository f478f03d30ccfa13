"""``python -m experiments.continual.cli fit --config FILE``: the same runs, configured in YAML."""

from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from experiments.continual.batches import StreamData
from experiments.continual.model import MLP


class StreamCLI(LightningCLI):
    """Links the network's size and seed to those of the stream."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("data.inputs", "model.inputs", apply_on="instantiate")
        parser.link_arguments("data.outputs", "model.outputs", apply_on="instantiate")


def main(args: Sequence[str] | None = None) -> StreamCLI:
    """Parse, build and run."""
    given = None if args is None else list(args)
    return StreamCLI(MLP, StreamData, seed_everything_default=0, args=given)


if __name__ == "__main__":
    main()
