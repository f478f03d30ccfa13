"""``python -m experiments.finetune.convert FILE.gguf FOLDER``: a quantized Llama model as a folder of transformers."""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(file: Path, folder: Path) -> None:
    """Save the model in single precision, without its quantization, and its tokenizer."""
    where, name = file.parent, file.name
    model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(folder)


if __name__ == "__main__":
    made = argparse.ArgumentParser(prog="python -m experiments.finetune.convert", description=__doc__)
    made.add_argument("file", type=Path, metavar="FILE.gguf")
    made.add_argument("folder", type=Path)
    convert(**vars(made.parse_args()))
