"""Submission sends a command that parses, and settings, but never a secret."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.errors import BadSetting, Mismatch, RayUnreachable
from infra.settings import Settings
from jobs.cli.entrypoint import require_secrets, require_versions
from jobs.submit.client import Job, JobCluster, exit_code_of
from jobs.submit.submit import SubmitRequest, entrypoint_of, known_secrets, refuse_secrets, runtime_env_of

PLANTED = {
    "AWS_ACCESS_KEY_ID": "planted-key-id",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
    "CLVR_MILVUS_TOKEN": "root:planted-token",
    "CLVR_WEBHOOK": "https://hooks.example/planted-path",
}


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")


def settings() -> Settings:
    return Settings(milvus_token=SecretStr("root:planted-token"), jobs_token=SecretStr("planted-jobs-token"))


def test_locations_are_sent_and_secrets_are_not() -> None:
    chosen = {
        "runs": "s3://data", "ray": "10.0.0.1:6379", "jobs_url": "http://head:8265",
        "milvus_token": "**********", "webhook": "**********",
    }  # fmt: skip
    request = SubmitRequest(
        ("reindex", "s3://archive", "--model", "s3://m"), secret_env=("CLVR_MILVUS_TOKEN",)
    )
    environment = runtime_env_of(request, chosen)
    assert environment == {"env_vars": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "CLVR_RUNS": "s3://data"}}
    sent = f"{environment} {entrypoint_of(request)}"
    assert not any(value in sent for value in (*PLANTED.values(), "planted"))
    assert entrypoint_of(request).endswith(" -- reindex s3://archive --model s3://m")


def test_arguments_of_the_command_are_quoted() -> None:
    command = ("search", "a picture.jpg", "--camera", "c; rm -rf /", "$(id)")
    assert "'a picture.jpg' --camera 'c; rm -rf /' '$(id)'" in entrypoint_of(SubmitRequest(command))


@pytest.mark.parametrize("name", [*PLANTED, "CLVR_JOBS_TOKEN"])
def test_secret_in_the_command_is_rejected_by_the_name_of_its_variable(name: str) -> None:
    secret_values = known_secrets(settings())
    with pytest.raises(BadSetting, match=name) as refused:
        refuse_secrets({"command": f"clvr load {secret_values[name]}"}, secret_values)
    assert secret_values[name] not in refused.value.message + refused.value.remedy


def test_url_with_a_password_is_rejected() -> None:
    with pytest.raises(BadSetting, match="URL with a password"):
        refuse_secrets({"command": "load r --milvus http://root:hunter2@milvus:19530"}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env_vars: {AWS_SECRET_ACCESS_KEY: x}", "env_vars has AWS_SECRET_ACCESS_KEY"),
        ("env_vars: {DB_PASSWORD: x}", "env_vars has DB_PASSWORD"),
        ("- a list", "must hold `name: value` lines"),
        ("a: [", "cannot be read"),
    ],
)
def test_invalid_runtime_environment_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "env.yaml"
    file.write_text(text)
    with pytest.raises(BadSetting, match=message):
        runtime_env_of(SubmitRequest(("status",), runtime_env=file), {})


def test_working_dir_is_sent_without_files_that_may_be_secret(tmp_path: Path) -> None:
    (tmp_path / "clvr.yaml").write_text("alias: cars\n")
    environment = runtime_env_of(SubmitRequest(("status",), working_dir=tmp_path), {})
    assert environment["working_dir"] == str(tmp_path.resolve())
    assert {".env", "*.pem", "*.key", ".git"} <= set(environment["excludes"])
    (tmp_path / "clvr.yaml").write_text("milvus_token: root:hunter2\n")
    with pytest.raises(BadSetting, match="holds milvus_token"):
        runtime_env_of(SubmitRequest(("status",), working_dir=tmp_path), {})


def test_job_reads_its_secrets_on_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLVR_SECRETS", str(tmp_path))
    (tmp_path / "FROM_A_FILE").write_text("mounted\n")
    require_secrets(["CLVR_MILVUS_TOKEN", "FROM_A_FILE"])
    with pytest.raises(BadSetting, match="no NOWHERE, NEITHER,"):
        require_secrets(["CLVR_MILVUS_TOKEN", "NOWHERE", "NEITHER"])


def test_other_release_of_a_package_is_rejected_and_another_build_is_not() -> None:
    require_versions(["torch==2.13.0+cu130", "clvr-archive==0.1.0"])
    with pytest.raises(Mismatch, match=r"ray is .* on the cluster and 1\.0 at the submitter"):
        require_versions(["ray==1.0"])


@pytest.mark.parametrize(
    ("status", "code", "given"),
    [("SUCCEEDED", 0, 0), ("FAILED", 8, 8), ("FAILED", None, 1), ("FAILED", -9, 137), ("STOPPED", None, 130)],
)
def test_exit_code_is_that_of_the_command(status: str, code: int | None, given: int) -> None:
    assert exit_code_of(Job("j", status, "c", code, "", None, None, {})) == given


def test_missing_address_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    for address in (None, "head:6379"):
        with pytest.raises(BadSetting, match="no address that accepts jobs"):
            JobCluster(Settings(jobs_url=address))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["submit"], 2, "COMMAND"),
        (["submit", "serve"], 2, "cannot run on a cluster"),
        (["submit", "status", "--no-such-option"], 2, "--no-such-option"),
        (["submit", "embed", "s3://archive"], 2, "--checkpoint"),
        (["submit", "reindex", "a", "--model", "m", "--webhook", "http://x"], 3, "--webhook"),
        (["submit", "--jobs-url", "http://127.0.0.1:9", "status"], 12, "127.0.0.1:9"),
        (["jobs", "show", "--jobs-url", "http://127.0.0.1:9", "x"], 12, "127.0.0.1:9"),
        (["jobs", "list"], 3, "jobs_url"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_invalid_command_is_rejected_before_anything_is_sent(clvr, arguments, code, message) -> None:
    done = clvr(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_cluster_that_does_not_respond_is_unreachable() -> None:
    with pytest.raises(RayUnreachable, match=r"127\.0\.0\.1:9 \(ConnectionError\)"):
        JobCluster(Settings(jobs_url="http://127.0.0.1:9")).list()
