"""Checks all imports, including those inside functions, against the layers of docs/architecture.md:
no module imports one of a higher layer, and no imports are circular.
"""

import ast
import graphlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = {"config", "schema", "command_configs", "entry"}  # modules that all commands import


def modules() -> dict[str, Path]:
    """Return the file of each module by the module's name."""
    found = {}
    for path in [*ROOT.glob("ops/*.py"), *ROOT.glob("detector/**/*.py")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    """Return the known modules that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def graph() -> dict[str, set[str]]:
    """Return the modules that each module imports."""
    files = modules()
    return {name: imports(path, set(files)) - {name} for name, path in files.items()}


def layers() -> list[set[str]]:
    """Read the layers from docs/architecture.md, the lowest first."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^`ops` \| .*$", text, re.MULTILINE)
    return [set(re.findall(r"\w+", layer)) for layer in line.split("|")]


def layer_of(name: str, imported: dict[str, set[str]]) -> int:
    """Return the index of a module's layer; -1 if it imports no other module of `detector` and any
    module may import it.
    """
    order = layers()
    path = modules()[name]
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8") and name.startswith("det"):
        return len(order) - 1  # it can be run, so it is a command
    package, _, rest = name.partition(".")
    part = package if package == "ops" else rest.partition(".")[0]
    if part in SHARED:
        part = "config"
    places = [place for place, names in enumerate(order) if part in names]
    if places:
        return places[0]
    own = {one for one in imported[name] if one.startswith("detector.")}
    return -1 if not own else len(order) - 1


def test_no_circular_imports() -> None:
    list(graphlib.TopologicalSorter(graph()).static_order())  # raises CycleError, with the cycle


def test_no_upward_imports() -> None:
    imported = graph()
    places = {name: layer_of(name, imported) for name in imported}
    upwards = [
        f"{name} -> {other}"
        for name, others in imported.items()
        for other in others
        if places[other] > places[name]
    ]
    assert not upwards


def test_the_parts_of_a_layer_do_not_know_each_other() -> None:
    imported = graph()
    for names in layers()[:-1]:
        for name in sorted(names):
            inside = [module for module in imported if module.startswith(f"detector.{name}.")]
            others = tuple(f"detector.{other}." for other in names - {name})
            for module in inside:
                met = [one for one in imported[module] if one.startswith(others)] if others else []
                assert not met, f"{module} -> {met}"


def test_every_layer_has_modules() -> None:
    imported = graph()
    places = {layer_of(name, imported) for name in imported}
    assert places == {-1, *range(len(layers()))}
