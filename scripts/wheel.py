"""What scripts/wheel looks at: what is in wheel and sdist, then what works where only the wheel is installed."""

import os
import re
import resource
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("sal_lightning", "safi_agent", "sal_page", "sal_cli")
NOT_CODE = (
    *(f"{package}/py.typed" for package in PACKAGES),
    *(f"safi_agent/valuesets/{name}.yaml" for name in ("civic", "professional", "unesco")),
    *(f"safi_agent/report/review.{kind}" for kind in ("css", "html", "js")),
    *(f"sal_page/page.{kind}" for kind in ("css", "js")),
)
LINK = re.compile(r"\]\((?!https?://|#)[^)]*\)")
TRIES = 5
SLOWEST = {"safi": 1.0, "sal": 3.0}  # seconds of CPU that --help may take
TALK = b"Should AI allocate vaccines?\n\n"


def expect(held: bool, what: str) -> None:
    """Say what does not hold, and end."""
    if not held:
        sys.exit(f"The wheel: {what}")


def contents(wheel: str, sdist: str) -> None:
    """Both have all of the packages, the wheel nothing else; its metadata are valid, its README leads nowhere."""
    from packaging.metadata import Metadata

    root = Path(__file__).parents[1]
    tree = {
        file.relative_to(root).as_posix()
        for package in PACKAGES
        for file in (root / package).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(about))  # raises what is not valid
    info = about.removesuffix("METADATA")
    with tarfile.open(sdist) as tar:
        sources = {name.partition("/")[2] for name in tar.getnames()}
    expect(set(NOT_CODE) <= tree, f"expected {sorted(set(NOT_CODE) - tree)} in the packages.")
    expect({n for n in names if not n.startswith(info)} == tree, f"not the packages: {sorted(names ^ tree)}.")
    expect(f"{info}licenses/LICENSE" in names, "expected LICENSE in it.")
    expect(tree <= sources, f"expected in the sdist: {sorted(tree - sources)}.")
    links = LINK.findall(metadata.description or "")
    expect(bool(metadata.description) and not links, f"links that PyPI cannot follow: {links}.")


def run(*command: str, given: bytes = b"", ends: int = 0) -> str:
    """What a command of this environment says, on both ways out."""
    path = str(Path(sys.executable).parent / command[0])
    done = subprocess.run(
        [path, *command[1:]], input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    said = done.stdout.decode()
    expect(done.returncode == ends, f"{' '.join(command)} ended with {done.returncode}, expected {ends}:\n{said}")
    return said


def quick(name: str) -> None:
    """The help of a command comes soon: CPU, the best of several tries, so that other work here counts less."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        expect(f"Usage: {name}" in run(name, "--help"), f"{name} --help does not explain itself.")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    least = min(once() for _ in range(TRIES))
    expect(least < SLOWEST[name], f"{name} --help took {least:.1f} s of CPU, expected less than {SLOWEST[name]}.")
    print(f"{name} --help: {least:.2f} s of CPU")


def bare() -> None:
    """Without extras sal_lightning works, and the rest says what to install."""
    expect(not any(map(find_spec, ("wandb", "langchain", "plotly", "typer"))), "expected no extras here.")
    import torch

    from sal_lightning import CommunicationLayer, SALCallback

    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters())
    layer = CommunicationLayer(model, optimizer)
    for _ in range(3):
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    expect(abs(sum(layer.spectrum()) - 100) < 1e-6, f"expected a spectrum, got {layer.spectrum()}.")
    SALCallback()
    said = run("python", "-c", "import safi_agent", ends=1)
    expect(said.endswith('pip install "sal-lightning[safi]"\n'), f"expected what to install, got:\n{said}")
    for name, extra in (("sal", "report"), ("safi", "safi")):
        said = run(name, "--help", ends=1)
        expect(said.count("\n") == 1 and f"sal-lightning[{extra}]" in said, f"expected one line, got:\n{said}")


def report() -> None:
    """``sal`` starts soon and writes a page."""
    quick("sal")
    Path("metrics.csv").write_text("sal/suppressed_step,sal/effect_step,sal/step_step\n0.5,0.2,10\n0.6,0.2,20\n")
    run("sal", "report", "metrics.csv")
    expect(Path("sal-report.html").is_file(), "expected a page of a run.")


def safi() -> None:
    """``safi`` starts soon, talks, and its log is whole, right and shown."""
    quick("safi")
    expect("rehearsal" in run("safi", "chat", "--model", "offline", given=TALK), "expected an answer.")
    run("safi", "verify")
    run("safi", "replay")
    run("safi", "report", "saf-spirit-log.json")
    expect(Path("saf-spirit-log.html").is_file(), "expected a page of the log.")


if __name__ == "__main__":
    os.environ.pop("OPENAI_API_KEY", None)
    if sys.argv[1] == "contents":
        contents(*sys.argv[2:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            {"bare": bare, "report": report, "safi": safi}[sys.argv[1]]()
