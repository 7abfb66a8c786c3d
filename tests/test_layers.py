"""A file imports only from its own layer or from lower ones, and no imports form a circle."""

import ast
from graphlib import TopologicalSorter

from helpers import ROOT

# From the top; a package stands for its files.
LAYERS = (
    ("train", "sample"),
    ("chargpt.sweep", "chargpt.compare"),
    ("chargpt.run", "chargpt.page", "chargpt.share", "chargpt.evaluate", "chargpt.scoring"),
    ("chargpt.callbacks", "chargpt.module", "chargpt.checkpoint", "chargpt.generation", "chargpt.data"),
    ("chargpt.model", "chargpt.optim", "chargpt.muon", "chargpt.batches", "chargpt.history", "chargpt.card")
    + ("chargpt.pictures", "chargpt.corpus", "chargpt.sources", "chargpt.tokenizer", "chargpt.attention"),
    ("chargpt.kernels", "chargpt.settings", "chargpt.files", "chargpt.command_line", "chargpt.errors"),
)
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in (ROOT / "train.py", ROOT / "sample.py", *(ROOT / "chargpt").rglob("*.py"))
}


def layer(name: str) -> int:
    """The place of a file in LAYERS, from the top."""
    [place] = [n for n, names in enumerate(LAYERS) for each in names if f"{name}.".startswith(f"{each}.")]
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


def test_imports_go_down():
    upwards = [(name, each) for name, found in IMPORTS.items() for each in found if layer(each) < layer(name)]
    assert [f"{name} imports {each}" for name, each in sorted(upwards)] == []


def test_imports_form_no_circle():
    TopologicalSorter(IMPORTS).prepare()
