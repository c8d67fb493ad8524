"""`helm test`: one token end to end, and the metrics that autoscaling and alerts live on. Standard library only."""

import argparse
import json
import pathlib
import sys
import urllib.error
import urllib.request


def call(url: str, body: dict[str, object] | None = None, key: str = "") -> str:
    """The text behind ``url``; ends the test with a sentence where there is none."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        sys.exit(f"{url} answered {error.code}: {error.read(500).decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{url} does not answer: {error}")


def parsed(url: str, text: str) -> dict[str, object]:
    """``text`` as the JSON object that it should be."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        sys.exit(f"{url} answered no JSON object: {text[:200]}")
    return found


def ask_openai(host: str, key: str) -> None:
    """One token from the OpenAI API."""
    models = parsed(f"http://{host}/v1/models", call(f"http://{host}/v1/models", key=key)).get("data")
    if not (isinstance(models, list) and models):
        sys.exit(f"http://{host}/v1/models names no model")
    url = f"http://{host}/v1/completions"
    answer = parsed(url, call(url, {"model": models[0]["id"], "prompt": "Hello", "max_tokens": 1}, key))
    if not answer.get("choices"):
        sys.exit(f"{url} answered no token: {answer}")
    print(f"one token from {models[0]['id']} through the OpenAI API")


def ask_triton(host: str, model: str) -> None:
    """One token from Triton itself."""
    url = f"http://{host}/v2/models/{model}/generate"
    answer = parsed(url, call(url, {"text_input": "Hello", "max_tokens": 1}))
    if "text_output" not in answer:
        sys.exit(f"{url} answered no token: {answer}")
    print(f"one token from {model} through Triton")


def expect_metric(host: str, name: str) -> None:
    """A metric of this name is exported."""
    url = f"http://{host}/metrics"
    if not any(line.startswith(name) for line in call(url).splitlines()):
        sys.exit(f"{url} has no metric {name}")
    print(f"metrics: {name} at {host}")


def main() -> None:
    """Ask, and look at the metrics."""
    parser = argparse.ArgumentParser()
    for name in ("triton", "triton-metrics", "model", "openai", "openai-metrics", "keys"):
        parser.add_argument(f"--{name}")
    given = parser.parse_args()
    ask_triton(given.triton, given.model)
    expect_metric(given.triton_metrics, "nv_inference_request_success")
    if given.openai:
        lines = pathlib.Path(given.keys).read_text(encoding="utf-8").splitlines() if given.keys else []
        ask_openai(given.openai, next((line.strip() for line in lines if line.strip()), ""))
        expect_metric(given.openai_metrics, "engineroom_gateway_")


if __name__ == "__main__":
    main()
