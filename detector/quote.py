"""Puts figures from committed JSON files into markdown, between comments that name the file, so
that no page can say anything else than what was measured.

    python -m detector.quote README.md docs/*.md
    python -m detector.quote --check README.md docs/*.md

A table, or a few lines, stands between two comments on lines of their own:

    <!-- quote operator ../ops/results/cpu.json -->
    <!-- end of quote -->

The word after `quote` says what is made of the file, which is relative to the markdown file:

    study       what a study says, its arms, and what it could have seen
    operator    the operator's times beside its peers'; operator-means their geometric means
    roi         RoI pooling's times
    step        a training step's times and memory
    neighbours  steps beside busy processes; medians any other comparison of step_benchmark
    evaluation  COCO's metrics beside other libraries'
    simulation  the intervals' coverage
    noted NAME  a table that was noted by hand from what a command printed

A single value stands within a sentence:

    at least <!-- value cpu.json: summary/threads=2/times conv2d: least .1f -->1.1<!-- end --> times

Of the three parts the second is a path of keys; `key=value,key!=value` chooses the entries of a
list that agree, whole numbers count them from 0, and `*` takes all. The third is a format of
Python's, with `least` or `most` before it where several entries are chosen, and `100 *` to
multiply. A line must not begin with such a comment, which markdown would take for a paragraph of
HTML. What stands in code, fenced or in backticks, is left alone. --check changes nothing, and fails
if something would.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detector import entry
from detector.analysis.study.report import arms_rows, could_have_seen
from detector.analysis.study.simulation import KINDS, Result, row
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
    """The text of a markdown file with every quote as its JSON file has it now.

    Raises:
        ConfigError: a file, an entry or a kind that is named is not there.
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
    """What a path leads to, in a format."""
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
    """The entries of a list that a step chooses, or the one of an object."""
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
    """What a study says, its table, and what it could have seen."""
    said = [content["says"], table(*arms_rows(content)), could_have_seen(content)]
    return "\n\n".join(part for part in said if part)


def operator(content: dict[str, Any]) -> str:
    """Milliseconds of ops.benchmark, and how many times as fast as torchvision."""
    candidates = ["ours float32", "ours bfloat16", "torchvision float32", "onnxruntime float32"]
    candidates += ["conv2d float32", "conv2d bfloat16"]
    names = [name.replace("torchvision float32", "torchvision") for name in candidates]
    names = [name.replace("onnxruntime float32", "onnxruntime") for name in names]
    return _times(content, "problem", candidates, names)


def roi(content: dict[str, Any]) -> str:
    """Milliseconds of ops.roi_benchmark, and how many times as fast as torchvision."""
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
    """C128@100x152 N1 -> C128, 100x152."""
    return problem.replace("@", ", ").removesuffix(" N1")


def _time(one: dict[str, Any] | None) -> str:
    if one is None:
        return "-"
    text = f"{one['ms']:#.3g}" if one["ms"] < 100 else f"{one['ms']:.0f}"
    if one["candidate"].startswith("torchvision"):
        return text
    return f"{text} ({one['times faster than torchvision']:.1f})"


def operator_means(content: dict[str, Any]) -> str:
    """Geometric means over the shapes."""
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
    """Seconds of a training step, and memory."""
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
    """A line for each way to wait, a column for each number of neighbours."""
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
    """Any comparison of detector.step_benchmark."""
    return f"{_sentence(of(content))}.\n\n" + medians_table(content["seconds"])


def evaluation(content: dict[str, Any]) -> str:
    """COCO's 12 numbers by several libraries."""
    said = (
        f"{content['images']} images, {content['classes']} classes, {content['objects']} objects "
        f"and {content['detections']} detections; {of(content)}."
    )
    return f"{said}\n\n" + evaluation_table(content["candidates"])


def simulation(content: Rows) -> str:
    """A line for each world and size."""
    header = ["runs are drawn", "seeds", "arms", *KINDS, "false alarms", "power", "paired"]
    return table(header, [row(Result(**one)) for one in content])


def noted(content: dict[str, Any], name: str) -> str:
    """A table that was noted by hand."""
    one = content[name]
    return f"{_sentence(one['what'])}; {one['device']}, {one['date']}.\n\n" + table(
        one["header"], one["rows"]
    )


def of(content: dict[str, Any]) -> str:
    """The machine, the versions, the date and how often it was measured, in words."""
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
    """Files, and perhaps --check."""
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
        raise ConfigError(f"{', '.join(stale)}: not what was measured; run this without --check")


if __name__ == "__main__":
    entry.show_help(__doc__)
    with entry.one_line_errors():
        main()
