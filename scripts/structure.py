"""Print the structure of both packages at one commit, or at two with the files that were renamed, merged or added.

An import is one of another file of the same package, anywhere in a file, except for type checkers only. A cycle is a
group of files that all import each other, directly or through others. Methods are those in the body of a class.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from commits import archive, git

PACKAGES = ("sal_lightning", "safi_agent")
LARGEST = 5  # classes that are listed
CHANGED = {"R": "renamed", "D": "deleted", "A": "new"}
REWRITTEN = "merged or rewritten"
MERGED = 0.1  # a deleted file counts as merged into one that gained this share of its lines

Sources = Mapping[str, str]  # the text of each file, by path
Trees = Mapping[str, ast.Module]  # by module
Graph = Mapping[str, frozenset[str]]


def sources(commit: str) -> Sources:
    """The Python files of both packages."""
    with archive(commit, *PACKAGES) as tar:
        return {file.name: tar.extractfile(file).read().decode() for file in tar if file.name.endswith(".py")}


def module(path: str) -> str:
    """The name under which a file is imported."""
    return ".".join(PurePosixPath(path).with_suffix("").parts).removesuffix(".__init__")


def runtime(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below this one, except what is for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from runtime(child)


def imports(trees: Trees) -> Graph:
    """The modules of the same package that each module imports."""

    def targets(tree: ast.Module) -> Iterator[str]:
        for node in runtime(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name if name in trees else str(node.module) for name in names)

    return {name: frozenset(targets(tree)) & trees.keys() - {name} for name, tree in trees.items()}


def cycles(graph: Graph) -> set[frozenset[str]]:
    """The import cycles: the strongly connected components of more than one module."""

    def reach(start: str) -> set[str]:
        found, queue = set[str](), [start]
        while queue:
            new = graph[queue.pop()] - found
            found |= new
            queue += new
        return found

    reached = {name: reach(name) for name in graph}
    return {
        frozenset(other for other in others if name in reached[other])
        for name, others in reached.items()
        if name in others
    }


def methods(trees: Trees) -> list[tuple[int, str]]:
    """The number of methods of each class, most first."""
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return sorted(((sum(isinstance(part, kinds) for part in c.body), c.name) for c in classes), reverse=True)


def figures(files: Sources) -> list[str]:
    """The figures of one package."""
    trees = {module(path): ast.parse(text) for path, text in files.items()}
    graph = imports(trees)
    return [
        str(len(files)),
        str(sum(text.count("\n") for text in files.values())),
        str(sum(map(len, graph.values()))),
        str(len(cycles(graph))),
        ", ".join(f"{name} {count}" for count, name in methods(trees)[:LARGEST]),
    ]


def table(commits: Mapping[str, Sources]) -> str:
    """The figures of both packages at each commit."""
    rows = [["package", "commit", "files", "lines", "imports", "cycles", "classes with most methods"]]
    rows.append(["---"] * len(rows[0]))
    for package in PACKAGES:
        for commit, files in commits.items():
            own = {path: text for path, text in files.items() if path.startswith(f"{package}/")}
            rows.append([package, commit, *figures(own)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def lines(text: str) -> Counter[str]:
    """The lines of a file, without imports and those that are as short as a bracket or a return."""
    stripped = (line.strip() for line in text.splitlines())
    return Counter(line for line in stripped if len(line) > 20 and not line.startswith(("from ", "import ")))


def merged_into(path: str, before: Sources, after: Sources) -> str:
    """The file that gained most lines of a deleted one, with their share; empty if it gained few."""
    own = lines(before[path])
    gained = {name: own & (lines(text) - lines(before.get(name, ""))) for name, text in after.items()}
    best = max(gained, key=lambda name: gained[name].total())
    share = gained[best].total() / max(1, own.total())
    return f"{best} ({share:.0%} of its lines)" if share >= MERGED else ""


def changes(commits: Mapping[str, Sources]) -> str:
    """Renamed, merged, deleted and new files: what ``git diff -M`` finds, and where the lines of deleted ones went."""
    listed: dict[str, list[str]] = {"renamed": [], REWRITTEN: [], "deleted": [], "new": []}
    for line in git("diff", "-M", "--name-status", *commits, "--", *PACKAGES).decode().splitlines():
        status, *paths = line.split("\t")
        if status[0] not in CHANGED or not paths[-1].endswith(".py"):
            continue
        into = merged_into(paths[0], *commits.values()) if status == "D" else ""
        listed[REWRITTEN if into else CHANGED[status[0]]].append(" → ".join([*paths, *filter(None, [into])]))
    return "\n\n".join(
        f"{len(files)} files {word}:\n\n" + "\n".join(f"- {file}" for file in files)
        for word, files in listed.items()
        if files
    )


def descriptions(files: Sources) -> str:
    """Each file with the first line of its docstring."""
    docstrings = {path: ast.get_docstring(ast.parse(text)) or "-" for path, text in files.items()}
    rows = (f"| {path} | {docstring.splitlines()[0]} |" for path, docstring in docstrings.items())
    return "\n".join(["| file | description |", "| --- | --- |", *rows])


def main() -> None:
    """Read the commits' files and print."""
    parser = argparse.ArgumentParser(prog="scripts/structure", description=__doc__)
    parser.add_argument("commits", nargs="*", metavar="COMMIT", default=["HEAD"], help="one or two; default: HEAD")
    parser.add_argument("--files", action="store_true", help="list the files of one commit with what each is")
    arguments = parser.parse_args()
    if len(arguments.commits) > (most := 1 if arguments.files else 2):
        parser.error(f"expected at most {most}, got {len(arguments.commits)}.")
    commits = {name: sources(name) for name in arguments.commits}
    print(descriptions(*commits.values()) if arguments.files else table(commits))
    if len(commits) == 2:
        print(f"\n{changes(commits)}")


if __name__ == "__main__":
    main()
