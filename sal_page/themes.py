"""Light and dark themes of a page, as CSS and as plotly templates."""

from typing import Any, NamedTuple


class Theme(NamedTuple):
    """CSS colours."""

    paper: str
    card: str
    ink: str
    faint: str  # secondary text
    line: str
    accent: str


THEMES = {
    "light": Theme("#f4f5f7", "#ffffff", "#20242b", "#5d6673", "#dfe3e8", "#0b6e99"),
    "dark": Theme("#14171c", "#1d2229", "#e6e9ee", "#9aa4b2", "#343b46", "#5bb8dd"),
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
# Distinguishable with any colour vision on both backgrounds (Okabe and Ito 2008, the dark ones lightened).
COLORS = ("#2a86c7", "#e0913a", "#22a884", "#cc79a7", "#8f8f8f", "#d55e00", "#b8a514", "#7b6fd0")


def css() -> str:
    """The colours as CSS custom properties, selected by the root's ``data-theme``."""
    return "".join(
        f':root[data-theme="{name}"] {{ color-scheme: {name}; '
        + "".join(f"--{part}: {color}; " for part, color in theme._asdict().items())
        + "}\n"
        for name, theme in THEMES.items()
    )


def template(theme: Theme) -> dict[str, Any]:
    """A plotly template for the theme; figures set only colours that carry meaning."""
    axis = {
        "gridcolor": theme.line,
        "linecolor": theme.line,
        "zerolinecolor": theme.line,
        "automargin": True,
        "title": {"font": {"size": 12, "color": theme.faint}, "standoff": 8},
    }
    return {
        "layout": {
            "font": {"family": FONT, "size": 12, "color": theme.ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(COLORS),
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": theme.card, "bordercolor": theme.line, "font": {"color": theme.ink}},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "shapedefaults": {"line": {"color": theme.faint}},
            "annotationdefaults": {"font": {"color": theme.faint, "size": 11}, "showarrow": False},
        }
    }
