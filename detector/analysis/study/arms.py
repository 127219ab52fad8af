"""Groups runs into arms by what their sweep varies, and names the arms.

The overrides that hydra wrote into a run's folder tell what the sweep, or the command line, set.
"""

from pathlib import Path

from omegaconf import OmegaConf

from detector.training.resume import MAY_CHANGE

ROWS = "ablation/"  # groups of configurations that each set several keys: the rows of a table
# Keys in which any two runs may differ: the seed, and the device, logging and the like. The
# keys that set the length of a run, which may change when it is resumed, are not among them.
IRRELEVANT = MAY_CHANGE - {"schedule.epochs", "schedule.patience", "max_skipped_steps"} | {"seed"}


def arms_of(runs: list[Path]) -> dict[Path, str]:
    """Return the name of each run folder's arm, by what the sweep varies."""
    return arms_by_overrides({run: overrides_of(run) for run in runs})[0]


def overrides_of(run: Path) -> dict[str, str]:
    """Return the overrides that the command line or the sweep gave this run: key -> value."""
    items = OmegaConf.load(run / ".hydra" / "overrides.yaml")
    pairs = (str(item).partition("=")[::2] for item in items)
    named = {key.lstrip("+~"): value for key, value in pairs}
    return {key: value for key, value in named.items() if key not in IRRELEVANT | {"ablation"}}


def arms_by_overrides(overrides: dict[Path, dict[str, str]]) -> tuple[dict[Path, str], list[str]]:
    """Name the arm of each run by the overrides that differ between runs.

    One override is written as its value alone, several as key=value.

    Returns:
        The arm of each run, and the keys of the overrides that differ.
    """
    keys = {key: None for of_run in overrides.values() for key in of_run}
    varied = [key for key in keys if len({of.get(key) for of in overrides.values()}) > 1]
    shown = varied or [key for key in keys if key == "deform"]
    named = {}
    for run, of_run in overrides.items():
        given = [f"{key.removeprefix(ROWS)}={of_run[key]}" for key in shown if key in of_run]
        if len(shown) == 1:
            named[run] = of_run.get(shown[0], f"without {shown[0]}")
        else:
            named[run] = " ".join(given) or "as configured"
    return named, varied
