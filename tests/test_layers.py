"""A file imports only from its own layer or from lower ones, and no imports form a circle."""

import ast
from graphlib import TopologicalSorter

from helpers import ROOT

# From the top: files and packages of chargpt/, and the two commands beside it.
LAYERS = [
    "train sample",
    "sweep compare",
    "run page share evaluate scoring",
    "callbacks module checkpoint generation data",
    "model optim muon batches history card pictures corpus sources tokenizer attention",
    "kernels settings files command_line errors",
]
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in (ROOT / "train.py", ROOT / "sample.py", *(ROOT / "chargpt").rglob("*.py"))
}


def layer(name: str) -> int:
    """The place of a file in LAYERS, counted from the top."""
    room = name.removeprefix("chargpt.").partition(".")[0]
    [place] = [n for n, rooms in enumerate(LAYERS) if room in rooms.split()]
    return place


def imported(node: ast.AST) -> set[str]:
    """The files that a piece of code imports, also inside functions, except for the checker of types."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return set()
    found = {each.name for each in node.names} if isinstance(node, ast.Import) else set()
    if isinstance(node, ast.ImportFrom):
        found = {name if (name := f"{node.module}.{each.name}") in FILES else str(node.module) for each in node.names}
    return found.union(*map(imported, ast.iter_child_nodes(node))) & FILES.keys() - {"chargpt"}


IMPORTS = {
    name: imported(ast.parse(file.read_text(encoding="utf-8"))) for name, file in FILES.items() if name != "chargpt"
}  # the package itself imports its public names when they are first used


def test_imports_go_down_and_form_no_circle():
    upwards = [(name, each) for name, found in IMPORTS.items() for each in found if layer(each) < layer(name)]
    assert [f"{name} imports {each}" for name, each in sorted(upwards)] == []
    TopologicalSorter(IMPORTS).prepare()
