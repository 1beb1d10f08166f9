"""The store in a bucket, against a real S3 server on this machine that asks for credentials."""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from actors.host import Host
from actors.store import Store, StoreError
from tests.pipeline.workers import job

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")

POLICIES = {"writer": ["s3:*"], "reader": ["s3:Get*", "s3:List*"]}


@pytest.fixture(scope="module")
def users() -> Iterator[dict[str, dict[str, str]]]:
    """The environment of each user of a server with a bucket `mbml`: a writer, a reader, and a stranger."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    place = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    known = {"endpoint_url": place["AWS_ENDPOINT_URL"], "region_name": "us-east-1"}
    known |= {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
    boto3.client("s3", **known).create_bucket(Bucket="mbml")
    iam, found = boto3.client("iam", **known), {}
    for name, actions in POLICIES.items():
        iam.create_user(UserName=name)
        rules: dict[str, Any] = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [rules]})
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=document)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        found[name] = {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            **place,
        }
    found["stranger"] = {"AWS_ACCESS_KEY_ID": "AKIANOBODY", "AWS_SECRET_ACCESS_KEY": "wrong", **place}
    # From here on it looks at credentials.
    plain = {"Content-Type": "text/plain"}
    switch = urllib.request.Request(f"{place['AWS_ENDPOINT_URL']}/moto-api/reset-auth", b"0", plain)
    urllib.request.urlopen(switch).close()
    yield found
    server.stop()


@pytest.fixture
def become(users, monkeypatch, tmp_path):
    """Be one of the users, on a machine with a cache of its own."""

    def switch(name: str) -> None:
        for variable, value in users[name].items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setenv("MBML_CACHE", str(tmp_path / f"cache of {name}"))
        s3fs.S3FileSystem.clear_instance_cache()

    yield switch
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("threads")
def test_jobs_make_artefacts_in_a_bucket_from_those_that_are_there(become):
    become("writer")
    store = Store("s3://mbml/jobs")
    store.check_writable()
    first = job("first", number=3)
    second = job("second", first)
    host = Host(store.url)
    host.run(first)
    host.run(second)
    assert store.keys("add") == sorted([first.ref.key, second.ref.key])
    assert (store.fetch(*second.ref) / "total").read_text() == "4"
    become("reader")
    elsewhere = Store("s3://mbml/jobs")
    assert (elsewhere.fetch(*second.ref) / "total").read_text() == "4"
    assert elsewhere.damage(*first.ref) is None


@pytest.mark.usefixtures("threads")
def test_a_node_downloads_an_artefact_once(become):
    become("writer")
    store, made = Store("s3://mbml/once"), job("once")
    Host(store.url).run(made)
    become("reader")
    assert (Store(store.url).fetch(*made.ref) / "total").read_text() == "1"
    become("writer")
    s3fs.S3FileSystem().rm_file(f"mbml/once/{'/'.join(made.ref)}/total")
    become("reader")
    assert (Store(store.url).fetch(*made.ref) / "total").read_text() == "1"


def test_work_that_was_stopped_goes_on_from_the_bucket(become):
    become("writer")
    store = Store("s3://mbml/stopped")

    def stop_in_the_middle():
        with store.create("stage", "key", {}) as made:
            (made.path / "half").write_text("1")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stop_in_the_middle()
    assert not store.complete("stage", "key")
    assert store.saved("stage", "key", "half")
    become("writer")
    with Store(store.url).create("stage", "key", {}) as made:
        assert (made.path / "half").read_text() == "1"
    assert [entry["file"] for entry in store.describe("stage", "key")["files"]] == ["half"]
    assert store.keys("stage") == ["key"]
    store.discard("stage", "key")
    assert store.keys("stage") == []


@pytest.mark.parametrize(
    ("user", "url"), [("reader", "s3://mbml/x"), ("stranger", "s3://mbml/x"), ("writer", "s3://no")]
)
def test_a_bucket_that_cannot_be_written_to_is_one_sentence(become, user, url):
    become(user)
    with pytest.raises(StoreError, match=f"^The store {url} cannot be written to .*; choose another.$") as caught:
        Store(url).check_writable()
    assert "\n" not in str(caught.value)
