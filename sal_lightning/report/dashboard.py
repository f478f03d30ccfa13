"""A workspace of Weights & Biases with SAL's panels."""

from typing import Any

from sal_lightning.report.naming import PREFIX, prefix
from sal_lightning.report.panels import STEP

BANDS = ("protected", "neutral", "volatile")
PLAIN = ("feature_drift",)  # logged by step alone, whatever the callback is called
# Title, the lines of the plot, and how they are drawn; over SAL's own steps unless said.
Plot = tuple[str, tuple[str, ...], dict[str, Any]]
AREA = {"plot_type": "stacked-area", "range_y": (0, 100)}
LAYOUT: dict[str, tuple[Plot, ...]] = {
    "Spectra": (
        ("Held: what the next update meets, %", BANDS, AREA),
        ("Observed: what has settled by itself, %", tuple(f"observed/{band}" for band in BANDS), AREA),
        ("Consolidations", ("consolidations",), {}),
    ),
    "Suppression": (
        ("Share held back of the gradient and of the update", ("suppressed", "effect"), {"range_y": (0, 1)}),
    ),
    "Drift": (
        ("Along held directions", ("drift",), {}),
        ("Features of the same inputs", ("feature_drift",), {}),
    ),
    "Emergence map": (
        ("Coherence × novelty", ("novelty",), {"x": "coherence", "range_x": (0, 1), "range_y": (0, 1)}),
        ("Coherence, novelty, resonance", ("coherence", "novelty", "resonance"), {"range_y": (0, 1)}),
        ("Emergence", ("emergence",), {"range_y": (0, 1)}),
    ),
}


def workspace(project: str, entity: str, name: str = "") -> Any:
    """The workspace, not saved yet; Weights & Biases adds panels for whatever else was logged, each layer among it.

    Args:
        project: in Weights & Biases.
        entity: whose it is.
        name: of the callback, if it has one.

    Raises:
        ImportError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ImportError('Expected wandb-workspaces: pip install "sal-lightning[wandb,dashboard]".') from error
    plot: Any = getattr(wr, "LinePlot")  # noqa: B009 (its module does not say that it has one)
    own = prefix(name)
    sections = []
    for section, plots in LAYOUT.items():
        panels = [
            plot(
                title=title, x=_key(look.get("x", STEP), own), y=[_key(line, own) for line in lines], **_without_x(look)
            )
            for title, lines, look in plots
        ]
        sections.append(ws.Section(name=section, panels=panels, is_open=True))
    return ws.Workspace(
        name="Self-Alignment Learning", entity=entity, project=project, sections=sections, auto_generate_panels=True
    )


def create(project: str, entity: str | None = None, name: str = "") -> str:
    """Save it; returns its address.

    Raises:
        ImportError: wandb-workspaces is not installed.
        ValueError: there is no key, or no entity to save it under.
    """
    made = workspace(project, entity or "", name)
    import wandb

    if not wandb.login(prompt=False):
        raise ValueError("Expected a key of Weights & Biases: `wandb login`, or WANDB_API_KEY; got none.")
    made.entity = entity or wandb.Api().default_entity
    if not made.entity:
        raise ValueError("Expected --entity, as this key has no default one; got none.")
    return str(made.save().url)


def _key(line: str, own: str) -> str:
    # Lightning adds the ending to what is logged by step and by epoch.
    return own + line if line == STEP else PREFIX + line if line in PLAIN else f"{own}{line}_step"


def _without_x(look: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in look.items() if name != "x"}
