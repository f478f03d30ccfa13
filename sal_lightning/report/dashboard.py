"""A workspace of Weights & Biases with SAL's panels."""

from typing import Any

from sal_lightning.report.naming import PREFIX, prefix
from sal_lightning.report.panels import STEP

BANDS = ("protected", "neutral", "volatile")
PLAIN = ("feature_drift",)  # independent of the callback's name
# Title, lines of the plot, and options; x is SAL's step by default.
Plot = tuple[str, tuple[str, ...], dict[str, Any]]
AREA = {"plot_type": "stacked-area", "range_y": (0, 100)}
LAYOUT: dict[str, tuple[Plot, ...]] = {
    "Spectra": (
        ("Held: as applied to the next update, %", BANDS, AREA),
        ("Observed: as measured by movement, %", tuple(f"observed/{band}" for band in BANDS), AREA),
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
    """Build the workspace without saving it; Weights & Biases adds panels for all other values, such as each layer's.

    Args:
        project: the project in Weights & Biases.
        entity: the user or team that owns the project.
        name: the callback's name, if it has one.

    Raises:
        ImportError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ImportError('Expected wandb-workspaces: pip install "sal-lightning[wandb,dashboard]".') from error
    plot: Any = getattr(wr, "LinePlot")  # noqa: B009 (its module does not declare it)
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
    """Build and save the workspace; returns its URL.

    Args:
        project: the project in Weights & Biases.
        entity: the user or team that owns the project; default: the key's default entity.
        name: the callback's name, if it has one.

    Raises:
        ImportError: wandb-workspaces is not installed.
        ValueError: there is no API key, or no entity.
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
    return (PREFIX if line in PLAIN else own) + line


def _without_x(look: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in look.items() if name != "x"}
