"""Backups: what is copied, how long it is kept, and that the saved values install the same release again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import scenarios
import yaml
from rendered import one

from engineroom.deploy.helm import Helm

Render = Callable[..., list[dict[str, Any]]]
BACKUP: dict[str, Any] = {"enabled": True, "to": "s3://backups/llama"}


def job(items: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = one(items, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return spec


def test_the_served_artifact_and_the_values_are_copied_every_night(render: Render) -> None:
    items = render("h100", backup=BACKUP)
    [container] = job(items)["containers"]

    assert one(items, "CronJob")["spec"]["schedule"] == "0 2 * * *"
    assert one(items, "CronJob")["spec"]["concurrencyPolicy"] == "Forbid"
    words = ["backup", scenarios.REFERENCE, "--to", "s3://backups/llama", "--values", "/release/values.yaml"]
    assert container["args"] == [*words, "--keep-daily", "7", "--keep-last", "7", "--keep-weekly", "4"]


def test_a_rule_of_zero_keeps_nothing_and_is_not_given(render: Render) -> None:
    items = render("h100", backup={**BACKUP, "keep": {"daily": 0, "weekly": 0, "last": 2}})

    [container] = job(items)["containers"]
    assert container["args"][-2:] == ["--keep-last", "2"]
    assert "--keep-daily" not in container["args"]


def test_the_claim_that_is_served_is_copied_with_those_that_are_named(render: Render) -> None:
    served = {"source": "pvc", "pvc": {"claim": "models"}, "ref": ""}
    spec = job(render("h100", artifact=served, backup={**BACKUP, "claims": ["adapters", "models"]}))
    [container] = spec["containers"]

    folders = [word for word in container["args"] if word.startswith("/sources/")]
    assert folders == ["/sources/models", "/sources/adapters"]
    assert not any("://" in word for word in container["args"][:1])
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert all(mounts[folder]["readOnly"] for folder in folders)
    claims = {
        volume["name"]: volume["persistentVolumeClaim"] for volume in spec["volumes"] if "source" in volume["name"]
    }
    assert {mounts[folder]["name"]: Path(folder).name for folder in folders} == {
        name: claim["claimName"] for name, claim in claims.items()
    }


def test_the_target_s_credentials_win_over_the_source_s(render: Render) -> None:
    [container] = job(render("build-values"))["containers"]

    assert [source["secretRef"]["name"] for source in container["envFrom"]] == ["model-store", "backup-store"]


def test_the_saved_values_install_the_same_objects_again(render: Render, helm4: Helm, tmp_path: Path) -> None:
    for name in ("build-values", "high-availability"):
        items = render(name)
        saved = tmp_path / "saved.yaml"
        saved.write_text(one(items, "ConfigMap", "-values")["data"]["values.yaml"], encoding="utf-8")

        again = scenarios.objects(helm4.template(scenarios.CHART, [saved], release="llm", namespace="models"))

        assert again == items


def test_a_restore_needs_no_backup_and_is_another_job_for_another_backup(render: Render) -> None:
    def restore(source: str) -> dict[str, Any]:
        values = {"enabled": False, "restore": {"from": source, "to": "s3://models", "claim": "back"}}
        return one(render("h100", backup=values), "Job")

    first, second = restore("s3://backups/llama:1"), restore("s3://backups/llama:2")

    [container] = first["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [
        "restore",
        "s3://backups/llama:1",
        "--to",
        "s3://models",
        "--folder-to",
        "/claim/restored",
    ]
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert not any(item["kind"] == "CronJob" for item in render("h100", backup={"restore": {"from": ""}}))


def test_the_saved_values_name_secrets_and_hold_none(render: Render) -> None:
    saved = yaml.safe_load(one(render("build-values"), "ConfigMap", "-values")["data"]["values.yaml"])

    assert saved["artifact"]["credentialsSecret"] == "model-store"
    assert saved["gateway"]["apiKeysSecret"] == "api-keys"
