"""Says in sentences what a study found, how, and how large a difference it would have found."""

from typing import Any

ONE_POINT = 0.01


def method(content: dict[str, Any]) -> str:
    """Say how differences, their intervals and the verdicts are computed."""
    return (
        "Each difference is between means over seeds. If an arm has two or more seeds, the 95 % "
        "intervals cover both the choice of validation images and the choice of seeds: they add "
        "the variance between the seeds of each arm to the variance of a paired bootstrap over "
        f"{content['num_resamples']} resamples of the {content['num_images']} images, count once "
        "what both contain, and use the quantile of Student's t at Satterthwaite's degrees of "
        "freedom. Otherwise they cover the choice of images only. The verdicts are corrected for "
        "the number of arms (Holm, at 5 %); the intervals are not."
    )


def headline(content: dict[str, Any]) -> str:
    """Summarise the study in one line, beginning with what it cannot show."""
    power, primary = content["could_have_seen"], content["primary"]
    parts = []
    if not content["comparisons"]:
        return f"One arm, {content['baseline']}: there is nothing to compare it with."
    if found_nothing(content):
        return (
            f"No arm detects anything yet: none reaches one point of {primary}. Train longer: "
            "networks that have learned nothing cannot show a difference between arms."
        )
    if power is None:
        parts.append("One seed per arm: this study cannot tell a better arm from a lucky seed.")
    elif power["difference"] > ONE_POINT:
        parts.append(
            f"This study cannot detect a difference of one point of {primary}: it has 80 % power "
            f"only from {100 * power['difference']:.1f} points on."
        )
    if power is not None and power["num_seeds"] == 2:
        parts.append("With two seeds per arm, its intervals are rough.")
    for one in content["comparisons"]:
        difference = one["differences"][primary]
        interval = f"[{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
        parts.append(
            f"{one['arm']} against {content['baseline']}: {one['verdict']}, "
            f"{100 * difference['value']:+.1f} {primary} {interval}."
        )
    return " ".join(parts)


def found_nothing(content: dict[str, Any]) -> bool:
    """Return whether no arm reaches one point, in which case differences mean nothing."""
    primary = content["primary"]
    return all(arm["numbers"][primary]["mean"] < ONE_POINT for arm in content["arms"])


def notes(content: dict[str, Any]) -> list[str]:
    """List what a reader must know to interpret the numbers."""
    arms, said = content["arms"], []
    seeds = {one["arm"]: list(one["runs"]) for one in arms}
    counts = {len(of_arm) for of_arm in seeds.values()}
    if len({tuple(of_arm) for of_arm in seeds.values()}) > 1:
        listed = "; ".join(f"{arm}: {', '.join(of_arm)}" for arm, of_arm in seeds.items())
        said.append(f"The arms have different seeds ({listed}).")
    if counts == {1}:
        said.append(
            "One seed per arm: the intervals cover the choice of images only. Another seed may "
            "change each arm by more than that, so the study never says that an arm is better or "
            "worse."
        )
    elif min(counts) == 1:
        said.append("An arm with one seed is assumed to vary between seeds as much as the others.")
    if min(counts) == 2:
        said.append(
            "Two seeds per arm: the variance between seeds is estimated from very few runs, so the "
            "intervals are wide, and too narrow if one arm varies much more than another."
        )
    for run, why in content["left_out"].items():
        said.append(f"Left out: {run}: {why}.")
    return said


def power_statement(study: dict[str, Any]) -> str:
    """Say how large a true difference must have been for the study to find it."""
    power = study["could_have_seen"]
    if power is None or found_nothing(study):
        return ""
    seeds, primary = power["num_seeds"], study["primary"]
    found = (
        f"With {seeds} seed{'s' if seeds > 1 else ''} per arm and these images, a true difference "
        f"of {100 * power['difference']:.1f} {primary} would have been found with a probability "
        "of 80 %"
    )
    if seeds < 2:  # what more seeds would give is predicted from two or more
        return f"{found}."
    if power["seeds_to_halve_it"] is None:
        return f"{found}; more seeds would not halve that difference, as there are too few images."
    return f"{found}; {power['seeds_to_halve_it']} seeds per arm would halve that difference."
