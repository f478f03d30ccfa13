"""Losses, divergence and answers, against a computation row by row."""

from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.finetune import measures
from experiments.finetune.measures import Measured, log_probabilities, measure
from experiments.finetune.model import load
from experiments.finetune.questions import QUESTIONS
from tests.tiny_language_model import model_folder


def test_they_are_those_of_each_token_alone(tmp_path: Path) -> None:
    net, tokenizer = load(model_folder(tmp_path))
    rows = torch.randint(1, 200, (6, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    own = [{"input_ids": rows[:2], "attention_mask": mask}]
    on = Measured({"text": rows}, own, [log_probabilities(net, own[0])], tokenizer)
    first = measure(net, on)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    before = [net(input_ids=row[None, :n]).logits[0].detach() for row, n in zip(rows, [8, 5, 8, 8, 8, 8], strict=True)]
    with torch.no_grad():
        net.model.embed_tokens.weight.add_(0.3 * torch.randn_like(net.model.embed_tokens.weight))
    found = measure(net, on)
    total, kl, n = 0.0, 0.0, 0
    for row, length, old in zip(rows, (8, 5), before, strict=False):
        now = net(input_ids=row[None, :length]).logits[0].detach()
        for i in range(length - 1):
            p, q = old[i].softmax(0), now[i].softmax(0)
            kl += float((p * (p / q).log()).sum())
            total -= float(q[row[i + 1]].log())
            n += 1
    assert found["kl"] == pytest.approx(kl / n, rel=1e-4)
    assert found["kl"] > 1e-3
    assert found["own"] == pytest.approx(total / n, rel=1e-4)
    losses = [nn.functional.cross_entropy(net(input_ids=r[None]).logits[0, :-1], r[1:]).item() for r in rows]
    assert found["text"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_answers_in_a_batch_are_those_of_each_question_alone(tmp_path: Path) -> None:
    net, tokenizer = load(model_folder(tmp_path))
    asked = ["Short?", "A longer question, with more words?"]
    assert measures.answers(net, tokenizer, asked) == [measures.answers(net, tokenizer, [q])[0] for q in asked]


def test_an_answer_counts_with_any_of_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net, tokenizer = load(model_folder(tmp_path))
    said = iter([[q.answer.upper() for q in QUESTIONS], ["I do not know."] * len(QUESTIONS)])
    monkeypatch.setattr(measures, "answers", lambda *_: next(said))
    assert measures.facts(net, tokenizer) == len(QUESTIONS) == 30
    assert measures.facts(net, tokenizer) == 0
