"""Container files, checked without a container engine."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from infra.servers.process import program
from infra.settings import PREFIX, Settings

DOCKER = Path(__file__).parents[2] / "infra" / "docker"
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.cuda")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return content


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_pass_hadolint(name: str) -> None:
    done = subprocess.run(
        [program("hadolint"), "--strict-labels", str(DOCKER / name)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_pinned_staged_and_not_root(name: str) -> None:
    text = (DOCKER / name).read_text()
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert re.search(r"^ARG BASE=\S+:\d+\.\d+\.\d+", text, re.MULTILINE)
    last_stage = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 1000:1000$", last_stage, re.MULTILINE)
    assert "pip install" not in last_stage, "no build tools' leftovers in what runs"
    project = (DOCKER.parents[1] / "pyproject.toml").read_text()
    assert re.search(r"torch==[\d.]+", text)[0] in project  # type: ignore[index]
    for package in re.findall(r"--yes (.*?) \\", text):
        assert "=" in package


def test_the_build_context_holds_the_source_and_no_secret() -> None:
    rules = (DOCKER.parents[1] / ".dockerignore").read_text().splitlines()
    assert rules[1] == "*"
    copied = set(
        re.findall(r"^COPY (?!--from)(\S+) \1$", (DOCKER / "Dockerfile.cpu").read_text(), re.MULTILINE)
    )
    assert copied == {"clvr_model", "index", "infra", "jobs"}
    assert {f"!{name}" for name in copied} <= set(rules)
    assert "infra/docker" in rules, "it holds secrets/"


def test_compose_follows_the_specification(compose: dict[str, Any]) -> None:
    from compose_spec import ComposeSpecification

    plain = {name: value for name, value in compose.items() if not name.startswith("x-")}
    specification = ComposeSpecification.model_validate(plain)
    assert specification.services is not None
    assert specification.services.keys() == compose["services"].keys()
    # The model ignores unknown fields, so a misspelt one must be looked for.
    known = {field.alias or name for name, field in type(specification.services["s3"]).model_fields.items()}
    for name, service in compose["services"].items():
        assert service.keys() <= known, name
    wrong = plain | {"services": {"s3": {"image": 5}}}
    with pytest.raises(ValidationError, match=r"services\.s3\.image"):
        ComposeSpecification.model_validate(wrong)


def test_compose_is_pinned_on_the_loopback_and_without_secrets(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {"s3", "etcd", "milvus", "ray"} <= services.keys()
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+", service["image"]), name
        assert "no-new-privileges:true" in service["security_opt"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for variable in service.get("environment", {}):
            assert not re.search("SECRET|TOKEN$|PASSWORD|ACCESS_KEY", variable), "by env_file or secret only"
            if variable.startswith(PREFIX):
                assert variable.removeprefix(PREFIX).lower() in Settings.model_fields
        for dependency in service.get("depends_on", {}):
            assert dependency in services
        if service["image"].startswith("clvr-archive"):
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
            assert service["user"].endswith(":-1000}")


def test_the_command_line_accepts_the_commands_of_containers(compose: dict[str, Any]) -> None:
    import typer

    from jobs.cli.app import app

    commands = [service.get("command", []) for service in compose["services"].values()]
    commands += [
        json.loads(re.findall(r"^CMD (.*)$", (DOCKER / name).read_text(), re.MULTILINE)[0])
        for name in DOCKERFILES
    ]
    clvr_commands = [command[1:] for command in commands if command and command[0] == "clvr"]
    assert len(clvr_commands) == 3
    group = typer.main.get_command(app)
    for words in clvr_commands:
        context = group.make_context("clvr", words[:1], resilient_parsing=True)
        name, parser, rest = group.resolve_command(context, words)
        assert parser is not None
        parser.make_context(name, rest, parent=context)


def test_secrets_are_generated_once_for_their_owner_only(tmp_path: Path) -> None:
    script = tmp_path / "make-secrets"
    script.write_bytes((DOCKER / "make-secrets").read_bytes())
    for _ in range(2):
        done = subprocess.run(["/bin/sh", str(script)], capture_output=True, text=True, check=True)
        made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
        assert done.stdout == ""
    assert made.keys() == {"s3.json", "client.env", "milvus.env", "ray-token"}
    for path in (tmp_path / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (
        yaml.safe_load(made["s3.json"])["identities"][0]["credentials"][0]["secretKey"] in made["client.env"]
    )


@pytest.mark.integration
def test_the_command_of_compose_creates_buckets(seaweedfs: Any, compose: dict[str, Any]) -> None:
    command = compose["services"]["buckets"]["command"]
    assert command[:3] == ["python", "-m", "infra.store"]
    for _ in range(2):
        subprocess.run(
            [sys.executable, *command[1:3], "s3://compose-a", "s3://compose-b"],
            env={**os.environ, **seaweedfs.environment},
            check=True,
            cwd=DOCKER.parents[1],
        )
    from infra.store import open_store

    assert list(open_store("s3://compose-b", seaweedfs.settings).list()) == []
