#!/usr/bin/env bash
# What needs a GPU, within eight minutes on a large one: the overhead of a step of GPT-2 with 16k tokens in bf16, and
# SmolLM2-135M fine-tuned for 500 steps without SAL, with SAL, and with LoRA adapters.
#
#     benchmarks/gpu.sh MODEL TEXTS [OUT]
#
# MODEL and TEXTS are the folders of experiments.finetune; the records are written to OUT (default: results).
set -euo pipefail
model=${1:?folder of the model} texts=${2:?folder of the texts} out=$(realpath -m "${3:-results}")
model=$(realpath "$model") texts=$(realpath "$texts")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

timeout 180 python -m benchmarks.overhead --workload gpt --device cuda --dtype bf16 --width 768 --depth 12 --heads 12 \
    --sequences 16 --rounds 3 --steps 16 --methods plain plain-again sal --out "$out/cost"

finetune() {
    timeout 100 python -m experiments.finetune --model "$model" --texts "$texts" --streams german --steps 500 \
        --accelerator gpu --out "$out/finetune" --methods "$@"
}
finetune plain --strengths 2e-4
finetune sal --strengths 0.25
finetune lora --strengths 8
