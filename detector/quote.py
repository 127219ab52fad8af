"""Copies figures from committed JSON files into markdown pages, so that every page states what was
measured.

    python -m detector.quote README.md docs/*.md
    python -m detector.quote --check README.md docs/*.md

A quote is a table or a few lines between two comments, each on its own line:

    <!-- quote operator ../ops/results/cpu.json -->
    <!-- end of quote -->

The file name is relative to the markdown page. The word after `quote` says what to write:

    study           the verdict of a study, its arms, and the smallest difference it could detect
    operator        the operator's times, compared with other implementations
    operator-means  the geometric means of these comparisons
    roi             the times of RoI pooling
    step            the time and memory of a training step
    neighbours      the time of a training step beside busy processes
    medians         any other comparison of detector.step_benchmark
    evaluation      the time and memory of COCO evaluation, compared with other libraries
    simulation      the coverage of the confidence intervals
    noted NAME      a table that was copied by hand from the output of a command

A single value stands within a sentence:

    at least <!-- value cpu.json: summary/threads=2/times conv2d: least .1f -->1.1<!-- end --> times

Its three parts are a file, a path and a format. The path is a list of keys with slashes between
them. In a list, `key=value,key!=value` selects the entries that satisfy all conditions, a whole
number is an index from 0, and `*` selects all entries. The format is a format specification of
Python. `least` or `most` before it takes the smallest or largest of several selected values, and
`100 *` multiplies the value. A line must not begin with such a comment, because markdown would take
it for a paragraph of HTML. Code, in a fence or in backticks, is not changed. --check changes no
file, and fails if a page is out of date.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detector import entry
from detector.analysis.study.report import arms_rows
from detector.analysis.study.rival_intervals import KINDS
from detector.analysis.study.sentences import power_statement
from detector.analysis.study.simulation import Result, row
from detector.config import ConfigError
from detector.evaluation.benchmark import to_markdown as evaluation_table
from detector.step_benchmark import to_markdown as medians_table
from detector.tables import table

CODE = r"^```.*?^```|`[^`\n]*`"
QUOTE = r"^<!-- quote (?P<kind>\S+) (?P<file>\S+)(?P<rest>[^\n]*?) -->\n.*?^<!-- end of quote -->"
VALUE = (
    r"(?P<alone>^[ \t]*)?<!-- value (?P<value_file>\S+): (?P<path>[^\n]*?):(?P<format>[^:\n]*?)-->"
    r"[^<\n]*<!-- end -->"
)
PARTS = re.compile(f"(?P<code>{CODE})|{QUOTE}|{VALUE}", re.DOTALL | re.MULTILINE)
PASSES = {"forward": "forward", "forward+backward": "f + b"}
FLAGS = {"avx2": "AVX2", "avx512f": "AVX512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}

Rows = list[dict[str, Any]]


def quoted(path: Path) -> str:
    """Return the text of a markdown page with all its quotes brought up to date.

    Raises:
        ConfigError: a quote names a file, an entry or a kind that does not exist.
    """

    def fresh(found: re.Match[str]) -> str:
        if found["code"] is not None:
            return found[0]
        where = f"{path}, line {found.string.count(chr(10), 0, found.start()) + 1}"
        name = found["file"] or found["value_file"]
        try:
            content = json.loads((path.parent / name).read_text(encoding="utf-8"))
            if found["kind"] is None:
                if found["alone"] is not None:
                    raise ValueError("a line must not begin with a value's comment")
                opening = found[0].split("-->")[0]
                text = value(content, found["path"], found["format"].strip())
                return f"{opening}-->{text}<!-- end -->"
            words = found["rest"].split()
            if found["kind"] not in KINDS_OF_QUOTE:
                raise ValueError(f"{found['kind']} is none of {', '.join(KINDS_OF_QUOTE)}")
            opening = found[0].split("\n")[0]
            text = KINDS_OF_QUOTE[found["kind"]](content, *words)
            return f"{opening}\n\n{text}\n\n<!-- end of quote -->"
        except OSError as error:
            raise ConfigError(f"{where}: {name}: {error.strerror}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(f"{where}: {name}: {type(error).__name__} {error}") from error

    return PARTS.sub(fresh, path.read_text(encoding="utf-8"))


# ---- single values -------------------------------------------------------------------------------


def value(content: Any, path: str, form: str) -> str:
    """Format the value at a path.

    Args:
        content: the content of a JSON file.
        path, form: as in a `value` comment; see the module's docstring.

    Raises:
        ValueError: the path leads to no value or to several.
    """
    found = [content]
    for step in path.split("/"):
        found = [inner for one in found for inner in _step(one, step)]
    which, _, rest = form.partition(" ")
    if which in ("least", "most"):
        found, form = [min(found) if which == "least" else max(found)], rest
    if len(found) != 1:
        raise ValueError(f"{path} leads to {len(found)} values, expected one")
    factor, times, rest = form.partition("* ")
    return format(float(factor) * found[0], rest) if times else format(found[0], form)


def _step(one: Any, step: str) -> list[Any]:
    """Return the entries of a list or an object that one step of a path selects."""
    if isinstance(one, dict):
        return list(one.values()) if step == "*" else [one[step]]
    if step == "*":
        return list(one)
    if step.lstrip("-").isdecimal():
        return [one[int(step)]]
    for condition in step.split(","):
        key, _, wanted = condition.partition("=")
        is_other = key.endswith("!")
        one = [each for each in one if (str(each[key.rstrip("!")]) == wanted) != is_other]
    return list(one)


# ---- tables --------------------------------------------------------------------------------------


def study(content: dict[str, Any]) -> str:
    """Format a study's verdict, its table of arms, and the smallest difference it could detect."""
    said = [content["says"], table(*arms_rows(content)), power_statement(content)]
    return "\n\n".join(part for part in said if part)


def operator(content: dict[str, Any]) -> str:
    """Format the milliseconds of ops.benchmark and the speed relative to torchvision."""
    candidates = ["ours float32", "ours bfloat16", "torchvision float32", "onnxruntime float32"]
    candidates += ["conv2d float32", "conv2d bfloat16"]
    names = [name.replace("torchvision float32", "torchvision") for name in candidates]
    names = [name.replace("onnxruntime float32", "onnxruntime") for name in names]
    return _times(content, "problem", candidates, names)


def roi(content: dict[str, Any]) -> str:
    """Format the milliseconds of ops.roi_benchmark and the speed relative to torchvision."""
    names = {
        "ours float32": "ours",
        "ours float32 NCHW": "ours, NCHW",
        "ours bfloat16": "ours, bfloat16",
        "ours float32 deform": "ours, deformable",
        "torchvision float32": "torchvision",
    }
    return _times(content, "samples of a bin", list(names), list(names.values()))


def _times(content: dict[str, Any], by: str, candidates: list[str], names: list[str]) -> str:
    found = {
        (one[by], one["threads"], one["pass"], one["candidate"]): one for one in content["times"]
    }
    rows = []
    for problem, threads, pass_ in dict.fromkeys(key[:3] for key in found):
        cells = [found.get((problem, threads, pass_, name)) for name in candidates]
        rows.append([_shape(problem), str(threads), PASSES[pass_], *map(_time, cells)])
    spread = 50 * max(one["spread"] for one in content["times"] if one["candidate"] in candidates)
    said = "Milliseconds, and in brackets how many times as fast as torchvision's in float32; "
    said += f"{of(content)}. Half the range of the rounds is at most {spread:.0f} % of a median."
    return said + "\n\n" + table([by.replace("problem", "shape"), "threads", "pass", *names], rows)


def _shape(problem: str) -> str:
    """Shorten a problem's name: C128@100x152 N1 becomes C128, 100x152."""
    return problem.replace("@", ", ").removesuffix(" N1")


def _time(one: dict[str, Any] | None) -> str:
    if one is None:
        return "-"
    text = f"{one['ms']:#.3g}" if one["ms"] < 100 else f"{one['ms']:.0f}"
    if one["candidate"].startswith("torchvision"):
        return text
    return f"{text} ({one['times faster than torchvision']:.1f})"


def operator_means(content: dict[str, Any]) -> str:
    """Format the geometric means over the shapes of ops.benchmark."""
    rows = [
        [
            f"{one['dtype']}, {one['pass'].replace('+', ' + ')}",
            str(one["threads"]),
            f"{one['times faster than torchvision']:.1f}",
            f"{one['times conv2d']:.2f}",
        ]
        for one in content["summary"]
    ]
    header = ["geometric mean over the shapes", "threads", "times as fast as torchvision"]
    return table([*header, "times `conv2d`'s time, same dtype"], rows)


def step(content: dict[str, Any]) -> str:
    """Format the seconds and the peak memory of detector.benchmark."""
    rows = []
    for one in content["steps"]:
        name, _, dtype = one["candidate"].rpartition(" ")
        memory = "-" if one["MiB"] is None else f"{one['MiB']:.0f}"
        spread = f"{50 * one['spread']:.0f} %"
        rows.append([STEPS[name], dtype, f"{one['seconds']:.2f}", spread, memory])
    problem = content["problem"]
    said = (
        f"{problem['batch']} images of {problem['size']} pixels, {content['threads']} threads; "
        f"{of(content)}. Memory is the peak above weights and images."
    )
    return f"{said}\n\n" + table(["", "dtype", "s", "half the range", "MiB"], rows)


STEPS = {
    "ours": "ours, `deform=none`",
    "ours deformable": "ours, `deform=c3-c5_v2`",
    "torchvision": "torchvision's `fasterrcnn_resnet50_fpn`",
    "torchvision deformable": "the same with torchvision's `deform_conv2d` in c3 to c5",
}


def neighbours(content: dict[str, Any]) -> str:
    """Format the medians of detector.step_benchmark neighbours, with a row for each way to wait and
    a column for each number of busy processes.
    """
    medians: dict[str, list[str]] = {}
    for name, of_rounds in content["seconds"].items():
        way = name.rpartition(", ")[0]
        medians.setdefault(way, []).append(f"{_median(of_rounds):.2f}")
    rows = [[way, *values] for way, values in medians.items()]
    header = ["seconds of a step", "alone", "beside one busy process", "beside two"]
    return f"{_sentence(of(content))}.\n\n" + table(header, rows)


def _median(of_rounds: Iterable[Iterable[float]]) -> float:
    values = sorted(one for of_round in of_rounds for one in of_round)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def medians(content: dict[str, Any]) -> str:
    """Format any comparison of detector.step_benchmark."""
    return f"{_sentence(of(content))}.\n\n" + medians_table(content["seconds"])


def evaluation(content: dict[str, Any]) -> str:
    """Format a comparison of libraries that compute COCO's 12 metrics."""
    said = (
        f"{content['images']} images, {content['classes']} classes, {content['objects']} objects "
        f"and {content['detections']} detections; {of(content)}."
    )
    return f"{said}\n\n" + evaluation_table(content["candidates"])


def simulation(content: Rows) -> str:
    """Format the simulation of studies, with a row for each way to draw runs and each size."""
    header = ["runs are drawn", "seeds", "arms", *KINDS, "false alarms", "power", "paired"]
    return table(header, [row(Result(**one)) for one in content])


def noted(content: dict[str, Any], name: str) -> str:
    """Format a table that was copied by hand from the output of a command."""
    one = content[name]
    return f"{_sentence(one['what'])}; {one['device']}, {one['date']}.\n\n" + table(
        one["header"], one["rows"]
    )


def of(content: dict[str, Any]) -> str:
    """Describe a measurement: its rounds, the machine, the versions and the date."""
    machine = content["machine"]
    processor = machine["processor"].replace("(R)", "").replace(" Processor", "")
    flags = ", ".join(FLAGS[flag] for flag in machine["flags"])
    device = f"{machine['cores']} cores of an {processor} ({flags})"
    if machine["gpu"] is not None:
        device = machine["gpu"]
    rounds = content.get("rounds") or len(next(iter(content["seconds"].values())))
    versions = ", ".join(f"{name} {v}" for name, v in sorted(machine["versions"].items()))
    said = "one round" if rounds == 1 else f"medians of {rounds} interleaved rounds"
    return f"{said}, {device}, {versions}, {machine['date']}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


KINDS_OF_QUOTE: dict[str, Callable[..., str]] = {
    "study": study,
    "operator": operator,
    "operator-means": operator_means,
    "roi": roi,
    "step": step,
    "neighbours": neighbours,
    "medians": medians,
    "evaluation": evaluation,
    "simulation": simulation,
    "noted": noted,
}


# ---- the command ---------------------------------------------------------------------------------


def main() -> None:
    """Update the markdown files of the command line or, with --check, verify them."""
    check = "--check" in sys.argv[1:]
    paths = [Path(word) for word in sys.argv[1:] if word != "--check"]
    if not paths:
        raise ConfigError("give the markdown files, such as README.md docs/*.md")
    stale = []
    for path in paths:
        text = quoted(path)
        if text != path.read_text(encoding="utf-8"):
            stale.append(str(path))
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        raise ConfigError(f"{', '.join(stale)}: figures are out of date; run this without --check")


if __name__ == "__main__":
    entry.show_help(__doc__)
    with entry.one_line_errors():
        main()
