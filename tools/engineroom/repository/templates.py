"""Where the model code lies that is copied into a tree: in the installed wheel, or in the checkout."""

from pathlib import Path

from engineroom.errors import OutsideError

FOLDER = "model-repo"

#: The one piece of tokenising code; it goes beside every ``model.py``.
TEXT = "text.py"
PREFLIGHT = "preflight.py"


def template_folder() -> Path:
    """The folder ``model-repo``. Raises OutsideError where the installation lacks it."""
    package = Path(__file__).resolve().parents[1]
    # An editable install has no copy of it: there the checkout's own folder lies two levels above the package.
    for folder in (package / "_data" / FOLDER, package.parents[1] / FOLDER):
        if (folder / TEXT).is_file():
            return folder
    raise OutsideError(
        f"the installation has no {FOLDER}",
        where=str(package),
        fix="install engineroom again, from a wheel or a checkout",
    )


def model_code(folder: Path, model: str) -> dict[str, Path]:
    """Files of the Python model ``model``: name in its version folder → where it lies now."""
    code = {path.name: path for path in sorted((folder / model / "1").glob("*.py"))}
    if "model.py" not in code:
        raise OutsideError(f"the installation has no code for the model {model}", where=str(folder))
    return code | {TEXT: folder / TEXT}
