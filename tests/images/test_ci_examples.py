"""The CI examples are valid, and their shell steps do what they say, run here with the CPU runtime."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_containers import ROOT

EXAMPLES = ROOT / "ci" / "examples"
PROGRAMS = Path(sys.executable).parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"

Script = tuple[str, str, dict[str, str]]
"""Job, text, and the variables that the file sets for it."""


def document(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text())
    return loaded


def github_scripts(path: Path) -> Iterator[Script]:
    for job, facts in yaml.safe_load(path.read_text())["jobs"].items():
        for step in facts["steps"]:
            if "run" in step:
                yield job, step["run"], {**facts.get("env", {}), **step.get("env", {})}


def gitlab_scripts() -> Iterator[Script]:
    for job, facts in document("gitlab-ci.yml").items():
        if isinstance(facts, dict) and "script" in facts:
            # As GitLab's runner does: all lines are one script, which the first failure ends.
            yield job, "\n".join(facts["script"]), facts.get("variables", {})


def job_script() -> str:
    objects = list(yaml.safe_load_all((EXAMPLES / "kubernetes-job.yaml").read_text()))
    (job,) = [item for item in objects if item["kind"] == "Job"]
    (script,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return str(script)


def check_jsonschema(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [PROGRAMS / "check-jsonschema", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


WORKFLOWS = sorted([*(ROOT / ".github/workflows").glob("*.yml"), EXAMPLES / "github-actions.yml"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_what_github_reads(path: Path) -> None:
    done = check_jsonschema("--builtin-schema", "vendor.github-workflows", path)
    assert done.returncode == 0, done.stdout


def test_the_gitlab_example_is_what_gitlab_reads(tmp_path: Path) -> None:
    schema = ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"]
    done = check_jsonschema(*schema, EXAMPLES / "gitlab-ci.yml")
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "broken.yml"
    broken.write_text((EXAMPLES / "gitlab-ci.yml").read_text().replace("script:", "scripts:"))
    assert check_jsonschema(*schema, broken).returncode == 1


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_the_job_is_what_kubernetes_takes(version: str) -> None:
    import kubernetes_validate

    for item in yaml.safe_load_all((EXAMPLES / "kubernetes-job.yaml").read_text()):
        kubernetes_validate.validate(item, version, strict=True)


def all_scripts() -> list[Script]:
    github = [script for path in WORKFLOWS for script in github_scripts(path)]
    return [*github, *gitlab_scripts(), ("job", job_script(), {})]


@pytest.mark.parametrize("script", all_scripts(), ids=lambda script: f"{script[0]}-{script[1][:30].strip()}")
def test_shell_steps_are_sound(script: Script) -> None:
    _, text, _ = script
    # An expression inside a script would be pasted in unquoted: whoever names a branch would run commands.
    assert "${{" not in text
    # Below a warning is style: the chart splits a variable of its own into words on purpose.
    command = [PROGRAMS / "shellcheck", "--shell=sh", "--severity=warning", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@dataclass
class Project:
    """A checkout of a user's repository, its origin, and what a CI system has beside them."""

    folder: Path
    origin: Path
    requests: Path
    """What was asked of the forge."""
    variables: dict[str, str]

    def git(self, *words: str, folder: Path | None = None) -> str:
        command = ["git", "-C", folder or self.folder, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=self.variables).stdout.strip()

    def run(self, text: str, variables: dict[str, str]) -> str:
        done = subprocess.run(
            ["sh", "-e", "-c", text],
            cwd=self.folder, env=self.variables | variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


#: In gh's place, which talks to github.com: it writes down what it was asked.
GH = '#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done >>"$REQUESTS"\n'
#: What a forge is asked by options of a push.
HOOK = """#!/bin/sh
n=0
while [ "$n" -lt "${GIT_PUSH_OPTION_COUNT:-0}" ]; do
    printenv "GIT_PUSH_OPTION_$n" >>"$REQUESTS"
    n=$((n + 1))
done
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    origin, folder, tools, requests = (tmp_path / name for name in ("origin.git", "work", "tools", "requests"))
    tools.mkdir()
    (tools / "gh").write_text(GH)
    (tools / "gh").chmod(0o755)
    variables = {
        "PATH": f"{tools}:{PROGRAMS}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "REQUESTS": str(requests),
        "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
        # The engine of this checkpoint may be there from another test.
        **{name: value for name, value in os.environ.items() if name.startswith(("ENGINEROOM_CACHE", "XDG_CACHE"))},
    }
    if not {"ENGINEROOM_CACHE", "XDG_CACHE_HOME"} & variables.keys():
        variables["XDG_CACHE_HOME"] = str(Path.home() / ".cache")
    made = Project(folder, origin, requests, variables)
    made.git("init", "--quiet", "--bare", "--initial-branch=main", str(origin), folder=tmp_path)
    made.git("config", "receive.advertisePushOptions", "true", folder=origin)
    (origin / "hooks" / "post-receive").write_text(HOOK)
    (origin / "hooks" / "post-receive").chmod(0o755)
    made.git("clone", "--quiet", str(origin), str(folder), folder=tmp_path)
    recipe = ROOT / "examples" / "smollm2.yaml"
    (folder / "engineroom.yaml").write_text(recipe.read_text())
    (folder / ".gitignore").write_text(".engineroom/\n")
    made.git("add", ".")
    made.git("-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "--message", "Begin")
    made.git("push", "--quiet", "origin", "HEAD:main")
    return made


def proposed(project: Project) -> dict[str, Any]:
    """The values on the branch that was pushed: they pin what was published."""
    values = yaml.safe_load(project.git("show", f"engine-{COMMIT}:deploy/values.yaml", folder=project.origin))
    assert re.fullmatch(rf"file://.*:commit-{COMMIT}@sha256:[0-9a-f]{{64}}", values["artifact"]["ref"])
    return dict(values)


@pytest.mark.local
def test_the_github_steps_publish_and_propose(project: Project, tmp_path: Path) -> None:
    variables = {"MODEL_STORE": f"file://{tmp_path}/store/smollm2", "COMMIT": COMMIT, "BASE": "main"}
    build, propose = github_scripts(EXAMPLES / "github-actions.yml")
    # What the file itself sets are expressions of GitHub; their names are all that the scripts may use.
    assert variables.keys() <= build[2].keys() | propose[2].keys()

    project.run(build[1], variables)
    # The artifact's way from job to job.
    (project.folder / "new").mkdir()
    (project.folder / ".engineroom" / "values.yaml").rename(project.folder / "new" / "values.yaml")
    project.run(propose[1], variables)

    assert proposed(project)["model"]["runtime"] == "ctranslate2"
    words = project.requests.read_text().splitlines()
    assert words[:2] == ["pr", "create"]
    assert words[words.index("--head") + 1] == f"engine-{COMMIT}"
    assert words[words.index("--base") + 1] == "main"


@pytest.mark.local
def test_the_gitlab_steps_publish_and_propose_once(project: Project, tmp_path: Path) -> None:
    forge = "https://engine-builder:secret@gitlab.example.com/team/llm.git"
    project.git("config", "--global", f"url.{project.origin}.insteadOf", forge)
    variables = {
        "MODEL_STORE": f"file://{tmp_path}/store/smollm2",
        "CI_COMMIT_SHA": COMMIT,
        "CI_DEFAULT_BRANCH": "main",
        "CI_SERVER_PROTOCOL": "https",
        "CI_SERVER_HOST": "gitlab.example.com",
        "CI_PROJECT_PATH": "team/llm",
        "PUSH_TOKEN": "secret",
    }
    build, propose = gitlab_scripts()

    project.run(build[1], variables)
    project.run(propose[1], variables)
    proposed(project)
    assert project.requests.read_text().splitlines() == [
        "merge_request.create",
        "merge_request.target=main",
        f"merge_request.title=Serve the engine of {COMMIT}",
    ]

    # The same engine again: nothing new to propose.
    assert "there already" in project.run(propose[1], variables)


@pytest.mark.local
def test_the_steps_of_the_job_publish_once(project: Project, tmp_path: Path) -> None:
    text = job_script()
    for place, here in (("/recipe/", f"{project.folder}/"), ("/build/stages", f"{tmp_path}/stages")):
        assert place in text
        text = text.replace(place, here)
    text = text.replace("s3://models/llama-3.1-8b", f"file://{tmp_path}/store/smollm2")

    project.run(text, {})
    assert "is published already" in project.run(text, {})
