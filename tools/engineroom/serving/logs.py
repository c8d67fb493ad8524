"""What the Triton server writes: which lines say nothing, and which say why it failed."""

import re
from collections.abc import Iterable

#: Lines that a healthy server writes on a machine without a GPU, or while it stops, and the reason why each
#: says nothing. Searched in the whole line; all were seen with Triton 2.51.
NOISE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"pinned_memory_manager\.cc.*CUDA driver version is insufficient", "there is no GPU"),
        (r"failed to allocate pinned system memory.*non-pinned system memory", "there is no GPU to copy to"),
        (r'"CUDA memory pool disabled"', "there is no GPU"),
        (r'"CudaDriverHelper has not been initialized\."', "logged as an error, means that there is no GPU"),
        (r"^Error: Failed to initialize NVML$", "there is no GPU to measure"),
        (r'"DCGM unable to start: DCGM initialization error"', "there is no GPU to measure"),
        (r"unable to create stream for ensemble: CUDA driver version is insufficient", "there is no GPU"),
        (r'"Collecting CPU metrics"', "always so"),
        (r"HandleCancellation called even when the context was not cancelled", "after each refusal in a gRPC stream"),
        (r"Timeout \d+: Found 0 model versions that have in-flight inferences", "nothing in flight"),
        (
            r"Timeout \d+: Found \d+ live models and 0 in-flight non-inference requests",
            "counts down while models unload",
        ),
    )
)

#: A server that writes one of these neither gets ready nor exits (tried for 20 s with 2.51).
_HOPELESS = ("error while loading shared libraries", "Failed to preinitialize Python stub")

_TABLE = re.compile(r"^\s*[|+]")
_TABLE_TITLE = re.compile(r"^I\d{4} \S+ \d+ (server|tritonserver)\.cc:\d+\]\s*$")

#: Reasons, the most telling first. The first group that matched is the reason.
_REASONS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(error while loading shared libraries: .+)",
        r"error: (cannot start .+)",
        r"failed to start \w+ service: (?:\w+ - )?(.*already in use)",
        r"(Failed to preinitialize Python stub: .+)",
        r"Poll failed for model directory (.+)",
        r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.+?)\"?$",
        r"error: creating server: (?:Internal|Invalid argument|Unavailable) - (?!failed to load all models)(.+)",
        r"(Stub process '[^']+' is not healthy)",
        r"(Exit timeout expired)",
        r"(Signal \(11\) received)",
        r"(failed to load all models)",
        r"^(?:\S*tritonserver: )?((?:unrecognized|invalid) option .+)",
    )
)


_UNREADABLE = re.compile(r"failed to read text proto from ([^\"]+)")
_PROTOBUF = re.compile(r"Error parsing text-format inference\.ModelConfig: (.+)")


class NoiseFilter:
    """Decides line by line what a person gets to see; it remembers whether it is inside a table."""

    def __init__(self) -> None:
        self._blank = False

    def keeps(self, line: str) -> bool:
        """Whether ``line`` (without its end) is worth showing.

        The tables of settings at the start are left out as well: readiness and failure are told in our words.
        """
        if _TABLE.match(line) or _TABLE_TITLE.match(line):
            self._blank = True
            return False
        if not line.strip():
            # Triton ends a table by an empty line.
            keep, self._blank = not self._blank, False
            return keep
        self._blank = False
        return not any(pattern.search(line) for pattern, _ in NOISE)


def reason_of(lines: Iterable[str]) -> str | None:
    """Why the server failed, in one line, as far as its log says."""
    kept = list(lines)
    # Triton names the file, its protobuf library in another line what is wrong in it.
    file = next((match[1] for line in kept if (match := _UNREADABLE.search(line))), None)
    wrong = next((match[1] for line in kept if (match := _PROTOBUF.search(line))), None)
    if file and wrong:
        return f"{file}: {wrong}"
    for pattern in _REASONS:
        for line in kept:
            if match := pattern.search(line):
                groups = match.groupdict()
                if "model" in groups:
                    return f"model {groups['model']}: {_first_line(groups['reason'])}"
                return _first_line(match[1])
    return None


def is_hopeless(lines: Iterable[str]) -> bool:
    """Whether the server has written that it will never be ready, though it lives."""
    return any(sign in line for line in lines for sign in _HOPELESS)


def useful_tail(lines: Iterable[str], count: int = 12) -> tuple[str, ...]:
    """The last ``count`` lines that are worth showing."""
    noise = NoiseFilter()
    return tuple([line for line in lines if line.strip() and noise.keeps(line)][-count:])


def _first_line(text: str) -> str:
    """A message's first line. Triton writes line ends inside a message as a backslash and an n.

    The traceback below it names lines of model.py, which help its author, who has the whole log.
    """
    first = re.split(r"\\n|\n", text, maxsplit=1)[0].strip().strip('"')
    return re.sub(r"^(Internal|Invalid argument|Unavailable|Not found|Unsupported): ", "", first)
