"""The three clients of one S3 server: obstore for objects, boto3 for control, pyarrow for Parquet."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from obstore.store import S3Store

from infra.store_settings import StoreSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def open_s3(bucket: str, prefix: str, use: StoreSettings) -> S3Store:
    """Return obstore's client for one prefix of a bucket; keys are relative to it. No I/O.

    Without an access key boto3's chain is asked; raises ValueError or BotoCoreError if it has none.
    """
    options: dict[str, Any] = {"region": use.region}
    if use.endpoint is not None:
        options["endpoint"] = use.endpoint
    if use.access_key is not None:
        options |= {"access_key_id": use.access_key, "secret_access_key": use.secret_key}
        if use.session_token is not None:
            options["session_token"] = use.session_token
    else:
        from obstore.auth.boto3 import Boto3CredentialProvider

        options["credential_provider"] = Boto3CredentialProvider()
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "allow_http": use.allow_http,
            "connect_timeout": timedelta(seconds=use.connect_seconds),
            "read_timeout": timedelta(seconds=use.read_seconds),
            "timeout": timedelta(seconds=use.request_seconds),
        },
        retry_config={
            "max_retries": use.retries,
            "retry_timeout": timedelta(seconds=use.retry_seconds),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=10),
                "base": 2,
            },
        },
        **options,
    )


def control_client(use: StoreSettings) -> "S3Client":
    """Return boto3's client, for buckets and presigned URLs."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=use.endpoint,
        region_name=use.region,
        aws_access_key_id=use.access_key,
        aws_secret_access_key=use.secret_key,
        aws_session_token=use.session_token,
        config=Config(
            signature_version="s3v4",
            connect_timeout=use.connect_seconds,
            read_timeout=use.read_seconds,
            retries={"total_max_attempts": use.retries + 1, "mode": "standard"},
            # Names under an endpoint of one's own seldom resolve as bucket.host.
            s3={"addressing_style": "path"} if use.endpoint else {},
        ),
    )


def arrow_files(use: StoreSettings) -> Any:
    """Return pyarrow's S3FileSystem; its paths are 'bucket/key'."""
    import pyarrow.fs

    return pyarrow.fs.S3FileSystem(
        access_key=use.access_key,
        secret_key=use.secret_key,
        session_token=use.session_token,
        region=use.region,
        endpoint_override=use.endpoint,
        connect_timeout=use.connect_seconds,
        request_timeout=use.read_seconds,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=use.retries + 1),
    )
