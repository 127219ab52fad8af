"""The tables and lines that a page can quote, each from the content of a JSON file."""

from collections.abc import Callable, Iterable
from typing import Any

from detector.analysis.study.report import arms_rows
from detector.analysis.study.rival_intervals import KINDS
from detector.analysis.study.sentences import power_statement
from detector.analysis.study.simulation import Result, row
from detector.evaluation.benchmark import to_markdown as evaluation_table
from detector.settings_benchmark import to_markdown as medians_table
from detector.tables import table

PASSES = {"forward": "forward", "forward+backward": "f + b"}
FLAGS = {"avx2": "AVX2", "avx512f": "AVX512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}

Rows = list[dict[str, Any]]


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
    said += f"{describe_measurement(content)}. "
    said += f"Half the range of the rounds is at most {spread:.0f} % of a median."
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
        f"{describe_measurement(content)}. Memory is the peak above weights and images."
    )
    return f"{said}\n\n" + table(["", "dtype", "s", "half the range", "MiB"], rows)


STEPS = {
    "ours": "ours, `deform=none`",
    "ours deformable": "ours, `deform=c3-c5_v2`",
    "torchvision": "torchvision's `fasterrcnn_resnet50_fpn`",
    "torchvision deformable": "the same with torchvision's `deform_conv2d` in c3 to c5",
}


def neighbours(content: dict[str, Any]) -> str:
    """Format the medians of detector.settings_benchmark neighbours, with a row for each way to wait
    and a column for each number of busy processes.
    """
    medians: dict[str, list[str]] = {}
    for name, of_rounds in content["seconds"].items():
        way = name.rpartition(", ")[0]
        medians.setdefault(way, []).append(f"{_median(of_rounds):.2f}")
    rows = [[way, *values] for way, values in medians.items()]
    header = ["seconds of a step", "alone", "beside one busy process", "beside two"]
    return f"{_sentence(describe_measurement(content))}.\n\n" + table(header, rows)


def _median(of_rounds: Iterable[Iterable[float]]) -> float:
    values = sorted(one for of_round in of_rounds for one in of_round)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def medians(content: dict[str, Any]) -> str:
    """Format any comparison of detector.settings_benchmark."""
    return f"{_sentence(describe_measurement(content))}.\n\n" + medians_table(content["seconds"])


def evaluation(content: dict[str, Any]) -> str:
    """Format a comparison of libraries that compute COCO's 12 metrics."""
    said = (
        f"{content['images']} images, {content['classes']} classes, {content['objects']} objects "
        f"and {content['detections']} detections; {describe_measurement(content)}."
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


def describe_measurement(content: dict[str, Any]) -> str:
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


TABLES: dict[str, Callable[..., str]] = {
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
