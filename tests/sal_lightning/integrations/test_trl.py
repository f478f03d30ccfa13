"""``SALTrainerCallback`` in TRL's trainer for supervised fine-tuning, as its users call it."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from sal_lightning.integrations.huggingface import SALTrainerCallback
from tests.tiny_language_model import model_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing` is deprecated:FutureWarning"),  # by TRL and peft
]
OLD = [f"Say it {how}: the quick brown fox jumps over {what}." for how in ("now", "again") for what in ("me", "it all")]
NEW = ["0123456789 9876543210", "77 77 77", "31415926535 8979 3238", "27182818 284"]


def dataset(texts, kind):
    if kind == "text":
        return Dataset.from_dict({"text": texts * 16})
    halves = [(text[:8], text[8:]) for text in texts * 16]
    return Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in halves])


def fine_tune(net, tokenizer, texts, callbacks, folder, kind):
    settings = {"max_steps": 60, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "max_length": 64}
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False}
    args = SFTConfig(output_dir=str(folder), use_cpu=True, logging_steps=20, **settings, **quiet)
    data = dataset(texts, kind)
    made = SFTTrainer(model=net, args=args, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)
    made.train()
    return made.state.log_history


def loss(net, tokenizer, texts):
    rows = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    with torch.no_grad():
        return sum(net.eval()(input_ids=row, labels=row).loss.item() for row in rows) / len(rows)


@pytest.mark.parametrize("kind", ["text", "prompt and completion"])
def test_old_texts_are_kept_without_being_told(tmp_path: Path, kind: str) -> None:
    forgotten, learned, events = {}, {}, []
    for sal in (False, True):
        set_seed(0)
        folder = model_folder(tmp_path)
        net, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        callback = SALTrainerCallback()
        callbacks = [callback] if sal else []
        fine_tune(net, tokenizer, OLD, callbacks, tmp_path, kind)
        before = loss(net, tokenizer, OLD)
        log = fine_tune(net, tokenizer, NEW, callbacks, tmp_path, kind)
        forgotten[sal], learned[sal] = loss(net, tokenizer, OLD) - before, loss(net, tokenizer, NEW)
        events = callback.events
    assert len(events) == 1
    assert 60 < events[0] <= 80, "found in the second fine-tuning, at its beginning"
    assert forgotten[True] < 0.5 * forgotten[False]
    assert forgotten[False] > 0.5
    assert learned[True] < learned[False] + 1
    assert "sal/protected" in log[-2]
