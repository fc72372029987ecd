"""An S3 server of this machine (moto's), for tests that write to a bucket."""

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

KEY, SECRET = "AKIAFGVCTESTS", "not-to-be-printed-anywhere"


@contextmanager
def s3_server(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start it; its address, which boto reads from the environment."""
    for package in ("s3fs", "moto", "flask_cors"):
        pytest.importorskip(package, reason="needs s3fs and moto's server: pip install 'fgvc[test]'")
    import logging

    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield os.environ["AWS_ENDPOINT_URL"]
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


class Bucket:
    """A new, empty bucket ``photos`` of the server at ``address``, which forgets all others."""

    def __init__(self, address: str):
        import boto3

        urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST")).close()
        self.client = boto3.client("s3")
        self.client.create_bucket(Bucket="photos")

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="photos", Key=key, Body=data)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket="photos", Key=key)["Body"].read()

    def names(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="photos")
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def unfinished(self) -> int:
        """Multipart uploads that were neither completed nor aborted."""
        return len(self.client.list_multipart_uploads(Bucket="photos").get("Uploads", ()))
