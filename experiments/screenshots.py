"""``python -m experiments.screenshots PAGE.html …``: pictures of pages, wide and narrow, light and dark."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from experiments.browser import browser

WIDTHS = {1400: 1000, 400: 1800}  # pixels: width and height
THEMES: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")


def main(argv: Sequence[str] | None = None) -> None:
    """Take the pictures; an error on a page's console, or a page wider than the window, is printed with its picture."""
    made = argparse.ArgumentParser(prog="python -m experiments.screenshots", description=__doc__)
    made.add_argument("pages", type=Path, nargs="+", help="HTML files, as of scripts/docs, sal report and safi report")
    made.add_argument("--out", type=Path, default=Path("out/screenshots"))
    args = made.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with browser() as window:
        for page in args.pages:
            for width, height in WIDTHS.items():
                for theme in THEMES:
                    window.goto(page, width, theme)
                    picture = args.out / f"{page.stem}-{width}-{theme}.png"
                    window.picture(picture, height=height)
                    wide = window.ask("return document.documentElement.scrollWidth")
                    print(picture, *window.errors(), *[f"The page is {wide} px wide."] * (wide > width))


if __name__ == "__main__":
    main()
