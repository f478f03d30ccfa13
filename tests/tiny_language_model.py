"""A folder with a tiny language model over bytes, and a folder with two small new texts."""

import gzip
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.finetune.texts import CODE, GERMAN

END = "<|im_end|>"
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>{% endfor %}"
SAID = "{% if add_generation_prompt %}<assistant>{% endif %}"


def model_folder(folder: Path) -> Path:
    """Save a random model and its tokenizer."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([END, *bytes_])}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END, pad_token=END)
    tokenizer.chat_template = CHAT + SAID
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def text_folder(folder: Path) -> Path:
    """Write both new texts."""
    folder.mkdir(parents=True, exist_ok=True)
    page = "   Ein kleiner Satz,\n   der umbricht.\n\n   +---+\n   |a b|\n   +---+\n\n   Noch einer.\n\n" * 30
    problem = {"prompt": 'def one():\n    """The number one."""\n', "canonical_solution": "    return 1\n"}
    (folder / GERMAN).write_bytes(gzip.compress(page.encode()))
    (folder / CODE).write_bytes(gzip.compress((json.dumps(problem) + "\n").encode() * 20))
    return folder
