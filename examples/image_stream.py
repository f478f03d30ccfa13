# %% [markdown]
# # A stream of image tasks that nobody announces
#
# *Is this digit odd?* is asked of 0 and 1, then of 2 and 3, then of 4 and 5, and so on. One network, one optimizer,
# one `fit`; nothing says where a task ends. An ordinary network forgets what it no longer sees. Beside it trains the
# same network with `SALCallback()`, all settings at their defaults.

# %% tags=["parameters"]
DATA = None  # "mnist", "digits" or a folder with the four files of MNIST; None: MNIST if it is at hand, else the digits
STEPS = 500  # training steps for each task
SEED = 0

# %%
import logging
import tempfile
import warnings
from pathlib import Path

import lightning as L
import plotly.graph_objects as go
import plotly.io as pio
import torch
from lightning.pytorch.loggers import CSVLogger
from plotly.subplots import make_subplots
from torch.utils.data import DataLoader, Dataset

from experiments.continual.data import OWN, SHARED, load
from sal_lightning import DriftMonitor, SALCallback
from sal_lightning.metrics import AverageAccuracy
from sal_lightning.report import plots, reading
from sal_page.themes import THEMES, template

TASKS, BATCH, WIDTH = 5, 128, 400
RUNS = Path(tempfile.mkdtemp())
pio.templates["sal"] = template(THEMES["light"])
pio.templates.default = "sal"
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
for advice in (".*does not have many workers", "GPU available but not used", r".*isinstance\(treespec, LeafSpec\)"):
    warnings.filterwarnings("ignore", advice)

# %% [markdown]
# ## The stream
#
# Each item of the data set is a whole batch. The network is shown one after the other and is told nothing else.

# %%
at_hand = any(folder.is_dir() for folder in (SHARED, OWN))
pictures = load(DATA or ("mnist" if at_hand else "digits"))


def task(x, y, number):
    """The pictures of two digits, and whether each is odd."""
    chosen = y // 2 == number
    return x[chosen], y[chosen] % 2


trained = [task(pictures.train_x, pictures.train_y, number) for number in range(TASKS)]
tested = [task(pictures.test_x, pictures.test_y, number) for number in range(TASKS)]


class Stream(Dataset):
    """One task after the other, a random batch at each step."""

    def __len__(self):
        return TASKS * STEPS

    def __getitem__(self, step):
        x, y = trained[step // STEPS]
        rows = torch.randint(len(x), (BATCH,), generator=torch.Generator().manual_seed(SEED * len(self) + step))
        return x[rows], y[rows]


print(f"{len(pictures.train_x)} pictures of {pictures.train_x.shape[1]} pixels, {TASKS} tasks of {STEPS} steps")

# %% [markdown]
# ## Network and exam
#
# An ordinary Lightning module. The exam asks all five tasks whenever one has ended; it is ours to look at, and
# neither the network nor SAL sees it.


# %%
class Odd(L.LightningModule):
    """Two hidden layers."""

    def __init__(self):
        super().__init__()
        pixels, relu = pictures.train_x.shape[1], torch.nn.ReLU()
        first, second = torch.nn.Linear(pixels, WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.net = torch.nn.Sequential(first, relu, second, relu, torch.nn.Linear(WIDTH, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Exam(L.Callback):
    """Accuracy on every task, at the end of each."""

    def __init__(self):
        self.accuracy = AverageAccuracy(TASKS)

    @torch.no_grad()
    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        ended, in_the_midst = divmod(trainer.global_step, STEPS)
        if not in_the_midst:
            shares = [(model(x).argmax(1) == y).float().mean() for x, y in tested]
            self.accuracy.update(torch.stack(shares), ended - 1)


def train(name, *callbacks):
    """Once through the stream."""
    L.seed_everything(SEED, verbose=False)
    exam, drift = Exam(), DriftMonitor(tested[0][0][:512], since=STEPS)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[*callbacks, exam, drift],
        logger=CSVLogger(RUNS, name="", version=name),
        log_every_n_steps=max(1, STEPS // 50),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Odd(), DataLoader(Stream(), batch_size=None))
    return exam.accuracy


sal = SALCallback()
accuracy = {"plain": train("plain"), "SAL": train("sal", sal)}

# %% [markdown]
# ## What was kept
#
# Row by row the stream goes on; column by column a task grows older. Look at the first column: the task that was
# learned first, and asked last.

# %%
figure = make_subplots(1, 2, subplot_titles=[f"{name}: {m.compute():.2f} on average" for name, m in accuracy.items()])
names = [f"{2 * number} or {2 * number + 1}" for number in range(TASKS)]
for column, metric in enumerate(accuracy.values(), 1):
    # What has not been trained yet is left out.
    R = metric.R.tril() + torch.full((TASKS, TASKS), torch.nan).triu(1)
    text = [["" if share != share else f"{share:.2f}" for share in row] for row in R.tolist()]
    heat = go.Heatmap(
        x=names,
        y=[f"after {name}" for name in names],
        z=R.tolist(),
        text=text,
        texttemplate="%{text}",
        zmin=0.5,
        zmax=1,
        colorscale="Blues",
        showscale=False,
    )
    figure.add_trace(heat, 1, column)
figure.update_yaxes(autorange="reversed", showgrid=False).update_xaxes(showgrid=False)
figure.update_yaxes(showticklabels=False, col=2)
figure.update_layout(height=320, margin_t=40)
figure

# %% [markdown]
# ## What SAL noticed
#
# It was not told where a task ends. It compares each batch with those before it and, where the inputs change, keeps
# what had emerged until then.

# %%
for number, event in enumerate(sal.events, 1):
    print(f"kept at step {event}: {event - number * STEPS} steps after task {number} had ended")
print("as held:    ", sal.spectrum())
print("as observed:", sal.spectrum("observed"))

# %% [markdown]
# ## The spectrum over time
#
# *Held* is what the next update will meet: nothing before the first change, then more (dotted: what had emerged is
# kept). *Observed* is what has settled by its own movement, held or not.

# %%
run, plain = (reading.read([RUNS / name]) for name in ("sal", "plain"))
plots.spectrum(run)

# %% [markdown]
# ## The price
#
# The share of the gradient, and of what Adam then made of it, that was held back. The rest went on learning.

# %%
plots.preservation(run)

# %% [markdown]
# ## The emergence field
#
# Each point is a logged step: how coherent the last hidden layer's states were, and how much of them lay outside the
# directions that earlier ones had used. It only observes. What is coherent and new would lie in the marked corner.
# After the first steps nothing does: the states of a new task are coherent, but lie in directions that were in use
# before.

# %%
plots.emergence(run)

# %%
plots.resonance(run)

# %% [markdown]
# ## Drift
#
# The last hidden layer's view of the first task's test pictures, relative to what it was when that task had just been
# learned. The other is the plain run.

# %%
plots.drift(run, plain)

# %% [markdown]
# All of these, and each layer by itself, are on the page that `sal report RUN --against PLAIN_RUN` writes of such
# runs.
