# %% [markdown]
# # Adapters that remember
#
# A small language model learns to write like the manual of Python, byte by byte. Then LoRA adapters (of `peft`) learn
# program code. Adapters leave the weights alone, but not what the network does: it forgets the manual all the same.
# `remember()` shows SAL some of the manual before the fine-tuning, and the adapters leave that be. Beside it, plain
# LoRA.

# %% tags=["parameters"]
LEARN = 1000  # training steps on the manual
TUNE = 400  # and of the adapters on code
RANK = 8  # of the adapters
STRENGTH = 0.25  # of SAL: the smaller, the more freely the adapters learn
ROWS = 200  # of each text, on which losses are taken
SEED = 0

# %%
import logging
import warnings
from copy import deepcopy
from itertools import islice, pairwise
from pydoc_data.topics import topics

import lightning as L
import plotly.graph_objects as go
import plotly.io as pio
import torch
from IPython.display import Markdown
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader

from experiments.language.model import GPT, LAYERS, LanguageModel, next_byte
from experiments.language.text import Batches, library, split, windows
from sal_lightning import SALCallback
from sal_page.themes import THEMES, template

CONTEXT, BATCH = 64, 16
pio.templates["sal"] = template(THEMES["light"])
pio.templates.default = "sal"
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
for advice in (".*does not have many workers", "GPU available but not used", r".*isinstance\(treespec, LeafSpec\)"):
    warnings.filterwarnings("ignore", advice)

# %% [markdown]
# ## Two texts
#
# Both come with every Python: the manual that `help()` quotes, and modules of the standard library.

# %%
manual = split("manual", "\n".join(topics.values()).encode())
code = library()
for text in (manual, code):
    print(f"--- {text.name}, {len(text.train):,} bytes:", bytes(text.train[:240].tolist()).decode(), sep="\n")


def batches(text, steps):
    """Random rows of a text, the same each time."""
    return DataLoader(Batches(text.train, CONTEXT, BATCH, steps, SEED), batch_size=None)


@torch.no_grad()
def loss(model, text):
    """Nats a byte on a part of the text that is not trained on."""
    return next_byte(model, windows(text.test, CONTEXT)[:ROWS]).item()


def fit(model, text, steps, *callbacks):
    """An ordinary training."""
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, batches(text, steps))


# %% [markdown]
# ## First the manual

# %%
L.seed_everything(SEED, verbose=False)
base = LanguageModel(GPT(layers=2, width=64, heads=4, context=CONTEXT), lr=2e-3)
fit(base, manual, LEARN)
before = loss(base, manual), loss(base, code)
print(f"manual {before[0]:.3f}, code {before[1]:.3f} nats a byte")

# %% [markdown]
# ## Then code, twice
#
# Both runs start from the same weights, see the same rows and have the same adapters. The only difference are the two
# lines that make the callback and let it look at the manual: inputs only, no labels.


# %%
class Both(L.Callback):
    """The loss on both texts, along the way."""

    def __init__(self):
        self.losses = [before]

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        if trainer.global_step % max(1, TUNE // 20) == 0:
            self.losses.append((loss(model, manual), loss(model, code)))


def adapted():
    """The model with new adapters; they alone are trained."""
    L.seed_everything(SEED, verbose=False)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(LAYERS))
    return LanguageModel(get_peft_model(deepcopy(base.net), config), lr=2e-3)


plain = Both()
fit(adapted(), code, TUNE, plain)

model, remembering = adapted(), Both()
sal = SALCallback(strength=STRENGTH)
sal.remember(model, (rows[:, :-1] for rows in islice(batches(manual, LEARN), 32)))
fit(model, code, TUNE, sal, remembering)
runs = {"LoRA": plain.losses, "LoRA with SAL": remembering.losses}

# %% [markdown]
# ## What was learned, and what it cost
#
# To the right more of the code is learned, upwards more of the manual is lost. Both lines begin at the lower left,
# with the losses before the fine-tuning. Compare the two at the same loss on code.

# %%
figure = go.Figure()
for name, losses in runs.items():
    kept, learned = zip(*losses, strict=True)
    figure.add_scatter(x=learned, y=kept, name=name, mode="lines+markers")
figure.update_xaxes(title_text="loss on code, nats a byte", autorange="reversed")
figure.update_yaxes(title_text="loss on the manual").update_layout(height=360)
figure

# %% [markdown]
# SAL learns more slowly: what would overwrite the manual is held back. So a fair figure is taken where both have
# learned as much: at the least loss on code that SAL came to, and half way there. What is learned first costs least;
# later the lines come closer. What a smaller learning rate or rank does instead, and what other methods do:
# `python -m experiments.language`.


# %%
def forgotten(losses, goal):
    """How much was lost on the manual when the loss on code first fell to the goal, between two looks."""
    for (a, x), (b, y) in pairwise(losses):
        if y <= goal:
            share = (x - goal) / (x - y)
            return a + share * (b - a) - before[0]
    return losses[-1][0] - before[0]


least = min(learned for _, learned in runs["LoRA with SAL"])
goals = [(before[1] + least) / 2, least]
cost = {name: [forgotten(losses, goal) for goal in goals] for name, losses in runs.items()}
head = ["| lost on the manual | half way | all the way |", "| --- | --- | --- |"]
rows = [f"| {name} | {half:+.3f} | {whole:+.3f} |" for name, (half, whole) in cost.items()]
Markdown(
    "\n".join([f"Loss on code {before[1]:.3f}, half way {goals[0]:.3f}, all the way {goals[1]:.3f}.", "", *head, *rows])
)

# %% [markdown]
# ## What is held
#
# Percent of the adapters' weights, as the next update would meet them.

# %%
print(sal.spectrum())
