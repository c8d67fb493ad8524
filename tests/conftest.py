"""What tests of all stages share. A fixture that one stage needs stands beside that stage's tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The machine decides how long an example takes, so a deadline would fail at random. CI tries the same examples
# each time: a run that fails there fails on a laptop too, with --hypothesis-profile=ci.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# Tests see no token, mirror or cloud account of whoever runs them: they would pass or fail with it, or spend it.
# Here and not in a fixture: huggingface_hub reads its variables when it is imported.
for _name in list(os.environ):
    if _name.startswith(("HF_", "HUGGING_FACE_", "AWS_", "AZURE_", "GOOGLE_")):
        del os.environ[_name]
# The classes are those that are shipped, whatever file of their own the one who runs the tests has.
os.environ["ENGINEROOM_GPUS"] = os.devnull


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of this checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the demo model's checkpoint, converted anew: what an older run cached proves nothing."""
    from engineroom.checkpoint.fetch import fetch
    from engineroom.progress import QUIET

    cache = tmp_path_factory.mktemp("demo-checkpoint")
    yield fetch("demo://smollm2", None, cache=cache, progress=QUIET).folder
    shutil.rmtree(cache)
