"""Checks the code blocks of the README and the manual. Python code is run. For a command line the
configuration is composed and checked as its command would do it.

A block that cannot be run has the comment `<!-- not run: ... -->` in the line above. It is compiled
nevertheless. Nothing is trained, downloaded or written outside a temporary folder.
"""

import ast
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from pages import ROOT, Block, blocks

from detector.analysis.sampling.__main__ import split_points
from detector.command_configs import (
    fill_in_training_data,
    parse_evaluate,
    parse_export,
    parse_offsets,
    parse_predict,
    parse_sampling,
)
from detector.config import ConfigError, parse_train
from detector.data.__main__ import HELP as OF_DATA

BLOCKS = blocks()
OTHER_PROGRAMS = {
    "bash",
    "pip",
    "pytest",
    "mkdocs",
    "docker",
    "pre-commit",
    ".",
    "tensorboard",
    "sbatch",
}
OTHER_PROGRAMS |= {"scancel", "squeue", "cd", "mkdir", "git", "export", "ls", "scontrol", "srun"}
OTHER_MODULES = {"venv", "build"}
OUTPUT = ["output=OUT"]  # the default is Hydra's run folder, which does not exist in these tests


def named(block: Block) -> str:
    return f"{block.page}:{block.line}"


def commands(code: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block, without comments and variable assignments."""
    for line in code.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


# ---- checks of a command's words ----------------------------------------------------------------


def composed(name: str, words: list[str]) -> Any:
    """Compose the configuration of a command, without Hydra's own overrides."""
    own = [word for word in words if not word.lstrip("+~").startswith("hydra")]
    OverridesParser.create().parse_overrides(words)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, overrides=own)


def of_training(words: list[str]) -> None:
    """Check the words of train.py; for a sweep take the first of all choices."""
    is_sweep = words[:1] == ["-m"]
    words = words[is_sweep:]
    if is_sweep:
        words = [word if "=[" in word else word.split(",")[0] for word in words]
    parse_train(composed("train", words))


def of_evaluation(words: list[str]) -> None:
    parse_evaluate(fill_in_training_data(composed("evaluate", [*OUTPUT, *words])))


def of_prediction(words: list[str]) -> None:
    parse_predict(composed("predict", [*OUTPUT, *words]))


def of_data(words: list[str]) -> None:
    """Check the words of the data command, which also takes those of a training."""
    command, *rest = words
    assert command in OF_DATA
    if command == "prepare":  # takes no configuration
        return
    config = composed("data_command", rest)
    OmegaConf.set_struct(config, False)
    for key in ("decode", "fix", "json", "out", "num_images", "rounds"):
        config.pop(key)
    parse_train(config)


def of_sampling(words: list[str]) -> None:
    others, points = split_points(words)
    config = composed("sampling", others)
    config.points = points
    parse_sampling(config)


def of_program(module: str) -> Callable[[list[str]], None]:
    """Return a check for a module that parses its words itself: every option and key must occur in
    the module's source.
    """

    def check(words: list[str]) -> None:
        if module in OTHER_MODULES:
            return
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        if spec.submodule_search_locations:
            spec = importlib.util.find_spec(f"{module}.__main__")
        assert spec is not None and spec.origin is not None, module
        source = "\n".join(path.read_text() for path in _sources(Path(spec.origin)))
        for word in words:
            name = re.match(r"(--[a-z-]+)|([a-z_]+)=", word)
            if name is not None and module != "detector.settings_benchmark":
                key = name[1] or name[2]
                assert re.search(rf"{re.escape(key)}\b", source), f"{module} has no {key}"

    return check


def _sources(origin: Path) -> list[Path]:
    """Return the files to search: the module, or all of its package for a __main__, and all
    commands.
    """
    beside = origin.parent.glob("*.py") if origin.name == "__main__.py" else [origin]
    return [*beside, *(ROOT / "detector" / "commands").glob("*.py")]


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train.py": of_training,
    "evaluate.py": of_evaluation,
    "predict.py": of_prediction,
    "detector.data": of_data,
    "detector.export": lambda words: void(parse_export(composed("export", words))),
    "detector.analysis.sampling": of_sampling,
    "detector.analysis.offsets": lambda words: void(
        parse_offsets(fill_in_training_data(composed("offsets", words)))
    ),
}


def void(_: object) -> None:
    """Discard a value: the check was that it could be computed."""


def check(words: list[str]) -> None:
    """Check a command line.

    Raises:
        AssertionError, ConfigError, HydraException: the command would refuse it.
    """
    program, *rest = words
    if program == "docker" and "python" in rest:
        program, *rest = rest[rest.index("python") :]
    if program == "torchrun":
        program, rest = "python", rest[rest.index("train.py") :]
    if program in OTHER_PROGRAMS:
        return
    assert program == "python", f"{program} is no program of {sorted(OTHER_PROGRAMS)}"
    if rest[0] == "-m":
        COMMANDS.get(rest[1], of_program(rest[1]))(rest[2:])
    elif rest[0] in COMMANDS:
        COMMANDS[rest[0]](rest[1:])
    else:
        assert (ROOT / rest[0]).exists(), rest[0]


# ---- tests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash"], ids=named)
def test_command_lines(block: Block) -> None:
    for words in commands(block.code):
        check(words)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=named)
def test_python(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that cannot be run still has to import what exists."""
    tree = ast.parse(block.code)
    if "<!-- not run:" in block.before:
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    monkeypatch.chdir(tmp_path)
    exec(compile(tree, named(block), "exec"), {})


def test_every_language_is_known() -> None:
    assert {block.language for block in BLOCKS} <= {"bash", "python", ""}


def test_commands_of_a_block() -> None:
    code = "A=1 pip install . && python train.py \\\n    a=b  # comment\n# all of it\n"
    assert list(commands(code)) == [["pip", "install", "."], ["python", "train.py", "a=b"]]


@pytest.mark.parametrize(
    "line",
    [
        "python train.py deform=c9",
        "python train.py schedule.epoch=3",
        "python train.py -m deform=c9,none",
        "python train.py data=coco data.root=my",
        "python evaluate.py detections=A.json",
        "python predict.py checkpoint=a images=b min_score=2",
        "python -m detector.nothing",
        "python -m ops.benchmark --thread 2",
        "python -m detector.analysis.sampling checkpoint=a images=b output=c points=1",
        "python -m detector.data look",
        "torchrun --nnodes=2 train.py precision=int8 deform=c9",
        "conda install torch",
    ],
)
def test_wrong_commands_are_refused(line: str) -> None:
    ((*words,),) = commands(line)
    with pytest.raises((AssertionError, ConfigError, HydraException)):
        check(words)
