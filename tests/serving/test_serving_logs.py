from pathlib import Path

import pytest

from engineroom.serving.logs import NOISE, NoiseFilter, is_hopeless, reason_of, useful_tail


def sample(name: str) -> str:
    """Lines as Triton 2.51 wrote them."""
    return Path(__file__).with_name("logs").joinpath(f"{name}.txt").read_text()


GOOD_START = sample("good-start")
OTHER_NOISE = sample("other-noise")
FAILED_MODEL = sample("failed-model")
BAD_CONFIG = sample("bad-config")
NO_CONFIG = sample("no-config")
PORT_TAKEN = sample("port-taken")
NO_LIBPYTHON = sample("no-libpython").rstrip()
NO_MODEL_PY = sample("no-model-py").rstrip()


def kept(text: str) -> list[str]:
    noise = NoiseFilter()
    return [line for line in text.splitlines() if noise.keeps(line)]


def test_a_good_start_is_told_in_the_lines_that_say_something() -> None:
    said = [line.partition("] ")[2] for line in kept(GOOD_START)]

    assert said == [
        '"loading: echo:1"',
        "\"successfully loaded 'echo'\"",
        '"Started GRPCInferenceService at 127.0.0.1:18001"',
        '"Started HTTPService at 127.0.0.1:18000"',
        '"echo: cancelled after 6 words"',
    ]


@pytest.mark.parametrize("line", OTHER_NOISE.splitlines())
def test_harmless_lines_are_left_out_even_when_they_call_themselves_errors(line: str) -> None:
    assert kept(line) == []


@pytest.mark.parametrize(
    "line",
    [
        *FAILED_MODEL.splitlines(),
        *PORT_TAKEN.splitlines(),
        NO_LIBPYTHON,
        'I1123 23:40:38.790411 8741 server.cc:321] "Timeout 28: Found 1 model versions that have in-flight inferences"',
        'I1123 23:53:55.080271 13863 http_server.cc:248] "Timeout 30: Found 1 HTTP service connections"',
        "Signal (11) received.",
        "Stub process 'echo_0_0' is not healthy.",
        "Exit timeout expired. Exiting immediately.",
    ],
)
def test_lines_that_matter_are_kept(line: str) -> None:
    assert kept(line) == [line]


def test_every_pattern_of_noise_has_a_real_line_and_a_reason() -> None:
    lines = (GOOD_START + "\n" + OTHER_NOISE).splitlines()

    for pattern, reason in NOISE:
        assert any(pattern.search(line) for line in lines), pattern.pattern
        assert reason


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (FAILED_MODEL, "model echo: RuntimeError: no engine in ../../engine"),
        (
            BAD_CONFIG,
            '/srv/echo/config.pbtxt: 17:9: Message type "inference.ModelConfig" has no field named "nonsense".',
        ),
        (
            NO_CONFIG,
            "'echo': failed to open text file for read /srv/echo/config.pbtxt: No such file or directory",
        ),
        (PORT_TAKEN, "Socket '127.0.0.1:18002' already in use"),
        (
            NO_LIBPYTHON,
            "error while loading shared libraries: libpython3.12.so.1.0: "
            "cannot open shared object file: No such file or directory",
        ),
        (NO_MODEL_PY, "Failed to preinitialize Python stub: Python model file not found in '/srv/echo/1/model.py'"),
        ("bin/tritonserver: unrecognized option '--nonsense=3'", "unrecognized option '--nonsense=3'"),
        (GOOD_START, None),
    ],
)
def test_the_reason_of_a_failure_is_one_line_of_the_log(log: str, reason: str | None) -> None:
    assert reason_of(log.splitlines()) == reason


def test_a_server_that_will_never_be_ready_is_recognised() -> None:
    assert is_hopeless([NO_LIBPYTHON])
    assert is_hopeless([NO_MODEL_PY])
    assert not is_hopeless(GOOD_START.splitlines())


def test_the_tail_of_a_log_holds_what_says_something() -> None:
    assert useful_tail((GOOD_START + FAILED_MODEL).splitlines(), 2) == (
        "I1123 23:40:49.382196 9053 model_lifecycle.cc:777] \"failed to load 'echo'\"",
        "error: creating server: Internal - failed to load all models",
    )
