"""The images do what pods ask of them: every command is the chart's own, rendered by Helm."""

import json
import signal
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from image_containers import BUILT, ROOT, Containerd, Published

pytestmark = pytest.mark.images

MEGABYTE = 1_000_000


def layers(target: str) -> list[int]:
    """Sizes of an image's layers in bytes, the base first."""
    with tarfile.open(BUILT / f"{target}.tar") as archive:
        (manifest,) = json.loads(reading(archive, "manifest.json"))
        return [archive.getmember(name).size for name in manifest["Layers"]]


def pod(values: Path, reference: str) -> dict[str, dict[str, Any]]:
    """The containers of the chart's Triton pod, by name."""
    rendered = subprocess.run(
        ["helm", "template", "llm", "charts/engineroom", "--values", values, "--set", f"artifact.ref={reference}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (deployment,) = [item for item in yaml.safe_load_all(rendered.stdout) if item and item["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    return {item["name"]: item for item in spec["initContainers"] + spec["containers"]}


def command(container: dict[str, Any]) -> list[str]:
    return [*container["command"], *container["args"]]


def served(volume: Path) -> tuple[str, ...]:
    """What the chart mounts into the containers that read the pulled tree."""
    return (
        f"type=bind,src={volume}/models,dst=/models,options=rbind:ro",
        "type=tmpfs,src=tmpfs,dst=/dev/shm,options=mode=1777:size=1g",
    )


@pytest.mark.parametrize(("target", "most"), [("toolkit", 180), ("triton-cpu", 600)])
def test_an_image_stays_small(target: str, most: int) -> None:
    """``most``: MB above its base, uncompressed, the base's own Python included."""
    base, *added = layers(target)

    sizes = ", ".join(f"{size / MEGABYTE:.1f}" for size in added)
    print(f"{target}: base {base / MEGABYTE:.1f} MB, added {sum(added) / MEGABYTE:.1f} MB in layers of {sizes}")
    assert sum(added) <= most * MEGABYTE


@pytest.mark.parametrize("target", ["toolkit", "triton-cpu"])
def test_byte_code_stays_valid_whatever_time_files_get(target: str) -> None:
    """Checked by nothing (flags 1, PEP 552). With a time in it, a read-only disk compiles it anew at each start."""
    flags: dict[bytes, list[str]] = {}
    with tarfile.open(BUILT / f"{target}.tar") as image:
        for name in json.loads(reading(image, "manifest.json"))[0]["Layers"]:
            with tarfile.open(fileobj=image.extractfile(name)) as layer:
                for member in layer:
                    if member.name.endswith(".pyc"):
                        flags.setdefault(reading(layer, member)[4:8], []).append(member.name)
    assert list(flags) == [b"\x01\0\0\0"], {kind: names[:5] for kind, names in flags.items()}


def reading(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def test_a_container_has_no_rights(containers: Containerd, toolkit: str) -> None:
    rights = "id -u; grep -E '^(Cap(Bnd|Eff|Prm)|NoNewPrivs)' /proc/self/status"
    script = f"{rights}; touch /usr/x 2>&1; touch /tmp/x && echo wrote"
    done = containers.run(toolkit, ["sh", "-c", script])

    words = done.stdout.split()
    assert words[0] == "1000"
    assert [word for word in words if set(word) == {"0"}] == ["0" * 16] * 3
    assert words[words.index("NoNewPrivs:") + 1] == "1"
    assert "Read-only file system" in done.stdout
    assert words[-1] == "wrote"


def test_nothing_that_builds_is_left(containers: Containerd, toolkit: str, triton_cpu: str) -> None:
    script = (
        "for name in pip pip3 gcc cc ld strip make; do command -v $name; done; ls -d ~root/.cache /build 2>/dev/null"
    )
    for image in (toolkit, triton_cpu):
        assert containers.run(image, ["sh", "-c", f"{script}; python3 -c 'import pip'"]).stdout == ""
    bill = json.loads((BUILT / "toolkit.cdx.json").read_text())
    assert "pip" not in {part["name"] for part in bill["components"]}


def test_the_version_comes_at_once(containers: Containerd, toolkit: str) -> None:
    """Measured inside the container, without the making of the container; printed, not judged."""
    command = "import subprocess as s, time; t = time.time(); s.run(%s, check=True); print(time.time() - t)"
    clock = command % ["engineroom", "--version"]
    outputs = [containers.run(toolkit, ["python3", "-c", clock]).stdout.split() for _ in range(5)]

    assert all(words[0] == "engineroom," for words in outputs)
    seconds = sorted(float(words[-1]) for words in outputs)
    bare = min(
        float(containers.run(toolkit, ["python3", "-c", command % ["/usr/bin/python3", "-c", "pass"]]).stdout)
        for _ in range(5)
    )
    print(f"engineroom --version: {seconds[0]:.2f} to {seconds[-1]:.2f} s; an empty Python program: {bare:.2f} s")


def test_all_modules_of_the_toolkit_can_be_imported(containers: Containerd, toolkit: str) -> None:
    """Stripped libraries load; what its containers need is there."""
    script = (
        "import grpc.aio, obstore, tokenizers, safetensors, pydantic, hf_xet, yaml, engineroom.protocol\n"
        "import starlette, uvicorn, uvloop, httptools, prometheus_client\n"
        "import engineroom.cli.main as m, importlib\n"
        "[importlib.import_module('engineroom.cli.' + module) for module, _ in m.VERBS.values()]"
    )
    done = containers.run(toolkit, ["/opt/engineroom/bin/python3", "-c", script])
    assert done.returncode == 0, done.stderr


def test_an_image_without_arguments_tells_its_verbs(containers: Containerd, toolkit: str) -> None:
    assert "engineroom [OPTIONS] COMMAND" in containers.run(toolkit, []).stdout


def test_the_builder_is_the_ci_job(containers: Containerd, builder: str, published: Published, tmp_path: Path) -> None:
    """``docker run engine-builder up``, with the CPU runtime: a checkpoint in, a published artifact and values out."""
    recipe = {"schema": 1, "model": {"source": "/checkpoint"}, "gpu": "cpu", "runtime": "ctranslate2"}
    recipe |= {"precision": "int8", "publish": {"to": "s3://models/built-in-a-container:v1"}}
    (tmp_path / "engineroom.yaml").write_text(yaml.safe_dump(recipe))
    tmp_path.chmod(0o777)
    mounts = [f"type=bind,src={tmp_path},dst=/work,options=rbind:rw"]
    mounts.append(f"type=bind,src={published.checkpoint},dst=/checkpoint,options=rbind:ro")
    words = ["engineroom-entrypoint", "engineroom", "up", "--recipe", "engineroom.yaml", "--output", "json"]

    done = containers.run(builder, words, mounts=mounts, environment=published.environment)

    assert done.returncode == 0, done.stderr
    reference = json.loads(done.stdout)["reference"]
    assert reference.startswith("s3://models/built-in-a-container:v1@sha256:")
    assert reference in (tmp_path / ".engineroom" / "values.yaml").read_text()
    assert "kind: Deployment" in (tmp_path / ".engineroom" / "manifests.yaml").read_text()


Pod = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def running(containers: Containerd, toolkit: str, triton_cpu: str, published: Published, volume: Path) -> Iterator[Pod]:
    """The chart's pod up to its Triton: pull, preflight and triton run as the chart says, unchanged."""
    parts = pod(published.values, published.reference)
    pulled = containers.run(
        toolkit,
        command(parts["pull"]),
        mounts=[f"type=bind,src={volume},dst=/volume,options=rbind:rw"],
        environment=published.environment,
    )
    assert pulled.returncode == 0, pulled.stderr
    checked = containers.run(triton_cpu, command(parts["preflight"]), mounts=served(volume))
    assert checked.returncode == 0, checked.stderr

    server = containers.start(triton_cpu, command(parts["triton"]), mounts=served(volume))
    name = containers.started[-1]
    try:
        until_it_answers(server, "http://127.0.0.1:8000/v2/models/tensorrt_llm/ready")
        yield parts
    finally:
        containers.kill(name, signal.SIGTERM)
    out, err = server.communicate(timeout=60)
    assert server.returncode == 0, (out + err)[-2000:]


def until_it_answers(process: "subprocess.Popen[str]", url: str, seconds: float = 120) -> None:
    """Wait until ``url`` answers 200, as a probe asks it. The containers' network is the test's own."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            body(url)
        except OSError as error:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"{url}: {error}"
            time.sleep(0.2)
        else:
            return


def body(url: str) -> str:
    # A proxy from the environment would be asked for loopback addresses too.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as response:
        text: str = response.read().decode()
    return text


def test_the_pulled_tree_is_verified_in_its_place(
    containers: Containerd, toolkit: str, running: Pod, volume: Path
) -> None:
    verified = containers.run(toolkit, ["engineroom", "verify", "/models"], mounts=served(volume)[:1])
    assert "every byte is right" in verified.stdout


def test_the_server_is_the_version_on_its_label(running: Pod) -> None:
    version = json.loads(body("http://127.0.0.1:8000/v2"))["version"]
    assert f'dev.engineroom.triton="{version}"' in (ROOT / "engine-builder/Dockerfile").read_text()


def test_the_toolkit_asks_the_server_of_the_pod(
    containers: Containerd, toolkit: str, running: Pod, volume: Path
) -> None:
    words = ["ask", "--chat", "What is the capital of France?", "--tree", "/models", "--output", "json"]
    answer = containers.run(toolkit, ["engineroom", *words], mounts=served(volume)[:1])
    assert answer.returncode == 0, answer.stderr
    print(answer.stdout)
    assert "Paris" in json.loads(answer.stdout)["text"]


def test_the_gateway_of_the_pod_streams_a_chat_to_openais_client(
    containers: Containerd, toolkit: str, running: Pod, volume: Path
) -> None:
    gateway = containers.start(toolkit, command(running["gateway"]), mounts=served(volume)[:1])
    name = containers.started[-1]
    try:
        until_it_answers(gateway, "http://127.0.0.1:9000/health/ready")
        rights = containers.rights(name)
        http = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(base_url="http://127.0.0.1:9000/v1", api_key="none", http_client=http) as client:
            (model,) = client.models.list().data
            began = time.monotonic()
            stream = client.chat.completions.create(
                model=model.id,
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                temperature=0,
                stream=True,
            )
            choices = [choice for chunk in stream for choice in chunk.choices]
            seconds = time.monotonic() - began
        pieces = [choice.delta.content for choice in choices if choice.delta.content]
        print(f"gateway: {len(pieces)} pieces in {seconds:.2f} s: {''.join(pieces)}")
        assert "Paris" in "".join(pieces)
        assert len(pieces) > 1
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
        assert "engineroom_gateway_ttft_seconds_count 1.0" in body("http://127.0.0.1:9002/metrics")
    finally:
        containers.kill(name, signal.SIGTERM)
    out, err = gateway.communicate(timeout=60)
    assert gateway.returncode == 0, (out + err)[-2000:]
    assert rights == {"Uid": "1000", "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "root": "ro"}
