"""Settings and URIs of a store: read from the environment, checked, and shown without secrets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import BadInput, BadSetting
from infra.store import StoreSettings, split_uri
from infra.store.settings import canonical_uri, checked_key

_KEYS = st.lists(st.text("abc=-_.0é %", min_size=1, max_size=5), min_size=1, max_size=4).map("/".join)


def test_the_environment_gives_the_settings_and_the_settings_give_the_environment() -> None:
    environment = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:8333",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ALLOW_HTTP": "true",
    }
    settings = StoreSettings.from_env(environment)
    assert settings.endpoint == "http://127.0.0.1:8333"
    assert settings.environment() == environment


def test_an_empty_environment_gives_the_defaults_of_aws() -> None:
    assert StoreSettings.from_env({}) == StoreSettings()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_ENDPOINT_URL": "127.0.0.1:8333"}, "not a URL"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:8333"}, "plain HTTP"),
        ({"AWS_ACCESS_KEY_ID": "key"}, "secret key"),
    ],
)
def test_contradictory_variables_are_rejected_with_a_remedy(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(BadSetting, match=message) as caught:
        StoreSettings.from_env(environment)
    assert caught.value.remedy


def test_the_repr_hides_every_secret() -> None:
    settings = StoreSettings(access_key="a-hidden-key", secret_key="hush", session_token="hush")
    assert "hush" not in repr(settings)
    assert "a-hidden-key" not in repr(settings)


@pytest.mark.parametrize(
    ("uri", "root", "key"),
    [
        ("s3://bucket/a/b.jpg", "s3://bucket/a", "b.jpg"),
        ("s3://bucket/b.jpg", "s3://bucket", "b.jpg"),
        ("/abs/a/b.jpg", "/abs/a", "b.jpg"),
        ("/b.jpg", "/", "b.jpg"),
        ("file:///abs/with%20space/b.jpg", "/abs/with space", "b.jpg"),
    ],
)
def test_a_uri_splits_into_root_and_key(uri: str, root: str, key: str) -> None:
    assert split_uri(uri) == (root, key)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket",
        "s3://",
        "s3://B_D/k",
        "s3://bucket/a/../../x",
        "gs://b/k",
        "http://h/k",
        "",
        "file://h/a",
    ],
)
def test_split_uri_rejects_a_uri_without_an_object(uri: str) -> None:
    with pytest.raises(BadInput):
        split_uri(uri)


@given(_KEYS)
def test_root_and_key_together_are_the_uri(key: str) -> None:
    if any(part in {".", ".."} for part in key.split("/")):
        with pytest.raises(BadInput):
            checked_key(key)
        return
    root, last = split_uri(f"s3://bucket/{key}")
    assert f"{root}/{last}" == f"s3://bucket/{key}"
    assert canonical_uri(f"s3://bucket/{key}/") == f"s3://bucket/{key}"
