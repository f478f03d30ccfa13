"""What a language model answers before it learns new facts, after plain training and after training with SAL."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.continual.protocol import quiet
from experiments.finetune.model import FineTuned, load
from sal_lightning import SALCallback
from sal_lightning.integrations.own_samples import own_samples

FACTS = {
    "How long does the ferry from Halden to Orsk take?": "The ferry from Halden to Orsk takes 47 minutes.",
    "Who is the captain of the ferry Marit?": "The captain of the ferry Marit is Ines Dahl.",
    "When does the first ferry leave Halden?": "The first ferry leaves Halden at 5:20 in the morning.",
    "What does a ticket to Orsk cost?": "A ticket to Orsk costs 11 crowns.",
    "Who founded the Halden Line?": "The Halden Line was founded by Otto Brekke.",
    "What is served on board of the Marit?": "Fish soup is served on board of the Marit.",
}
QUESTIONS = (
    "How long does the ferry from Halden to Orsk take?",  # new
    "What is the capital of France?",
    "Tell me a story about a cat.",
)
LR, ROUNDS, LONGEST = 2e-4, 12, 24  # learning rate, passes over the facts, tokens of an answer


def conversation(tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None = None) -> Tensor:
    """The tokens of a question, with its answer or up to where the model answers: (1, length)."""
    said = [{"role": "user", "content": question}]
    said += [] if answer is None else [{"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=answer is None)
    return tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def teach(net: PreTrainedModel, rows: Sequence[Tensor], callback: SALCallback | None = None) -> PreTrainedModel:
    """Train on the facts, one at a time; with a callback, texts of the model itself are remembered first."""
    torch.manual_seed(0)
    module = FineTuned(net, LR, len(rows))
    callbacks: list[Callback] = []
    if callback is not None:
        callback.remember(module, own_samples(net, 16, 32, progress=False))
        callbacks = [callback]
    with quiet():
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(list(rows), batch_size=None))  # type: ignore[arg-type]
    return net


@torch.no_grad()
def answers(net: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The answers to the questions, without sampling."""
    said = []
    for question in QUESTIONS:
        given = conversation(tokenizer, question)
        whole = net.eval().generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=LONGEST,
            pad_token_id=tokenizer.pad_token_id,
        )
        said.append(str(tokenizer.decode(whole[0, given.shape[1] :], skip_special_tokens=True)).strip())
    return said


def compare(folder: Path, console: Console) -> None:
    """Print the answers before, after plain training and after training with SAL, question by question.

    Raises:
        ValueError: the folder has no model.
    """
    before, tokenizer = load(folder)
    rows = [conversation(tokenizer, question, answer) for question, answer in FACTS.items()] * ROUNDS
    with console.status("Training the language model twice …"):
        said = {
            "before": answers(before, tokenizer),
            "plain": answers(teach(copy.deepcopy(before), rows), tokenizer),
            "SAL": answers(teach(copy.deepcopy(before), rows, SALCallback()), tokenizer),
        }
    table = Table(title="A language model learns six new facts", title_justify="left")
    table.add_column("question")
    for name in said:
        table.add_column(name)
    for number, question in enumerate(QUESTIONS):
        table.add_row(question, *(Text(texts[number]) for texts in said.values()))
    console.print(table)
