"""Files of the project that repeat the same facts agree: versions are those of pyproject.toml,
commands those of the README, and Python versions those of requires-python.
"""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def read_yaml(path: str | Path) -> dict:
    # BaseLoader keeps every value a string: 3.10 does not become a number, nor `on` a boolean.
    return yaml.load((ROOT / path).read_text(), Loader=yaml.BaseLoader)


def jobs(workflow: Path) -> dict[str, dict]:
    return {f"{workflow.stem}/{name}": job for name, job in read_yaml(workflow)["jobs"].items()}


ALL_JOBS = {name: job for workflow in WORKFLOWS for name, job in jobs(workflow).items()}


def readme_commands() -> list[str]:
    """Return the README's command that installs and trains, and the one that runs the tests."""
    text = (ROOT / "README.md").read_text()
    starts = ("python -m venv ", r"pip install -e '\.\[test\]' && ")
    return [re.search(rf"^{start}.+$", text, re.MULTILINE).group() for start in starts]


def stages(dockerfile: Path) -> dict[str, list[str]]:
    """Return the instructions of each stage, with the command of CMD as typed into a shell."""
    text = re.sub(r"^ *#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    found: dict[str, list[str]] = {}
    for line in filter(None, text.splitlines()):
        if line.startswith("FROM "):
            found[line.split()[-1]] = []
        elif line.startswith("CMD "):
            line = "CMD " + " ".join(json.loads(line.removeprefix("CMD ")))
        found[list(found)[-1]].append(line)
    return found


# ------------------------------------------------------------------------------ version


def test_the_citation_has_the_version_of_pyproject():
    assert read_yaml("CITATION.cff")["version"] == PROJECT["version"]


def test_the_newest_heading_of_the_changelog_is_the_version_of_pyproject():
    headings = re.findall(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0][0] == PROJECT["version"]
    for _, date in headings[1:]:  # all versions but the newest are released and have a date
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", date)


def test_the_licence_is_the_same_wherever_it_is_named():
    assert read_yaml("CITATION.cff")["license"] == PROJECT["license"]


# ---------------------------------------------------------------------------- workflows


def test_the_workflows_are_tests_wheels_and_docs():
    assert {workflow.stem for workflow in WORKFLOWS} == {"tests", "wheels", "docs"}


@pytest.mark.parametrize("job", ["tests/tests", "wheels/wheels"])
def test_a_workflow_runs_on_every_python_that_the_project_admits(job):
    admitted = SpecifierSet(PROJECT["requires-python"])
    minors = [f"3.{minor}" for minor in range(100) if f"3.{minor}" in admitted]
    assert ALL_JOBS[job]["strategy"]["matrix"]["python"] == minors


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read(workflow):
    assert read_yaml(workflow)["permissions"] == {"contents": "read"}
    assert not [name for name, job in jobs(workflow).items() if "permissions" in job]


@pytest.mark.parametrize("job", ALL_JOBS)
def test_a_job_ends_in_time_and_its_actions_are_pinned_by_major_version(job):
    assert int(ALL_JOBS[job]["timeout-minutes"]) > 0
    for step in ALL_JOBS[job]["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_the_tests_workflow_runs_the_commands_of_readme_and_all_of_ci():
    steps = [step.get("run", "") for step in ALL_JOBS["tests/tests"]["steps"]]
    first, second = readme_commands()
    assert first in steps
    assert f". .venv/bin/activate && {second}" in steps
    assert {"run": "bash .ci/run"} in ALL_JOBS["tests/everything"]["steps"]


def test_wheels_are_built_for_two_processors_and_the_cuda_half_where_there_is_an_nvcc():
    machines = ALL_JOBS["wheels/wheels"]["strategy"]["matrix"]["machine"]
    assert {machine["name"]: machine["cuda"] for machine in machines} == {
        "x86_64": "1",
        "aarch64": "0",
    }


# ----------------------------------------------------------------------- issue templates


def test_a_bug_report_asks_for_the_output_of_ops():
    fields = {
        field.get("id"): field for field in read_yaml(".github/ISSUE_TEMPLATE/bug.yml")["body"]
    }
    assert "`python -m ops`" in fields["ops"]["attributes"]["label"]
    assert fields["ops"]["validations"]["required"] == "true"
    assert fields["command"]["validations"]["required"] == "true"
    assert fields["run"]["attributes"]["label"] == "summary.json and train.log"


# -------------------------------------------------------------------------- Dockerfiles


def test_there_is_a_dockerfile_of_each_device():
    assert [dockerfile.stem for dockerfile in DOCKERFILES] == ["cpu", "cuda"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_holds_the_commands_of_readme(dockerfile):
    first, second = readme_commands()
    install, train = first.rsplit(" && ", 1)
    install_tests, test = second.rsplit(" && ", 1)
    found = stages(dockerfile)
    assert f"RUN {install}" in found["installed"]
    assert found["training"][-1] == f"CMD {train}"
    assert list(found)[-1] == "training"  # a build without --target makes the last stage
    assert f"RUN {install_tests}" in found["tests"]
    assert found["tests"][-1].split(" -m ")[0] == f"CMD {test}"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_nothing_of_the_project_is_installed_or_run_as_root(dockerfile):
    installed = stages(dockerfile)["installed"]
    user = installed.index("USER 1000")
    assert user < min(i for i, line in enumerate(installed) if "pip " in line or "COPY" in line)
    assert sum("USER" in line for lines in stages(dockerfile).values() for line in lines) == 1


def test_the_images_say_what_becomes_of_the_cuda_half():
    chosen = {
        dockerfile.stem: re.findall(
            r"^ENV .*DEFORM_CONV_CUDA=(\S+)", dockerfile.read_text(), re.MULTILINE
        )
        for dockerfile in DOCKERFILES
    }
    assert chosen == {"cpu": ["0"], "cuda": ["1"]}
