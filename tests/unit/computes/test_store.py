"""Computes are kept in one private file, by name, without any secret."""

import json
import stat
import threading

import pytest

from modelkit.computes import (
    Compute,
    add_compute,
    computes_path,
    find_compute,
    list_computes,
    parse_url,
    remove_compute,
)
from modelkit.errors import UsageError


@pytest.fixture(autouse=True)
def own_config(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELKIT_CONFIG_DIR", str(tmp_path / "config"))


def ray(name="cluster", **fields):
    return Compute(name=name, kind="ray", address="http://head:8265", **fields)


def test_there_is_none_at_first():
    assert list_computes() == []


def test_one_that_was_added_is_found_as_it_was():
    compute = ray(token_env="RAY_TOKEN", registry="registry.example.com/team")
    add_compute(compute)
    assert find_compute("cluster") == compute
    assert list_computes() == [compute]


def test_the_file_is_its_owners_alone():
    add_compute(ray())
    assert stat.S_IMODE(computes_path().stat().st_mode) == 0o600
    assert stat.S_IMODE(computes_path().parent.stat().st_mode) == 0o700


def test_a_name_is_given_once():
    add_compute(ray())
    with pytest.raises(UsageError, match="a compute 'cluster' already"):
        add_compute(ray(namespace="other"))
    assert find_compute("cluster").namespace is None
    add_compute(ray(endpoint="lb:9000"), replace=True)
    assert find_compute("cluster").endpoint == "lb:9000"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Big Cluster"}, "cannot be the name"),
        ({"name": ""}, "cannot be the name"),
        ({"kind": "slurm"}, "'slurm' is no kind of compute"),
        ({"token_env": "eyJhbGciOi.J9"}, "named by its environment variable"),
    ],
)
def test_what_cannot_be_a_compute_is_refused_and_nothing_written(fields, message):
    with pytest.raises(UsageError, match=message):
        add_compute(Compute(**{"name": "cluster", "kind": "ray", "address": "http://head:8265", **fields}))
    assert not computes_path().exists()


def test_a_token_given_in_place_of_its_name_is_not_repeated():
    with pytest.raises(UsageError) as caught:
        add_compute(ray(token_env="hf_abc.def"))
    assert "hf_abc" not in caught.value.message + caught.value.cure


def test_removing():
    add_compute(ray())
    assert remove_compute("cluster") == ray()
    assert list_computes() == []
    with pytest.raises(UsageError, match="no compute 'cluster'"):
        remove_compute("cluster")


def test_the_nearest_name_is_offered():
    add_compute(ray("gpu-cluster"))
    with pytest.raises(UsageError) as caught:
        find_compute("gpu-clutser")
    assert "did you mean gpu-cluster?" in caught.value.cure


def test_several_may_add_at_once():
    threads = [threading.Thread(target=add_compute, args=(ray(f"c{i}"),)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list_computes()) == 16


@pytest.mark.parametrize(
    "text", ["", "[]", '{"computes": {"a": {"kind": "ray", "adress": "x"}}}', '{"computes": 3}']
)
def test_a_file_that_was_damaged_says_where(text):
    add_compute(ray())
    computes_path().write_text(text)
    with pytest.raises(UsageError, match=r"computes\.json is not what modelkit has written"):
        list_computes()
    with pytest.raises(UsageError):
        add_compute(ray("other"))
    assert computes_path().read_text() == text  # nothing is lost


def test_the_token_comes_from_the_environment(monkeypatch):
    compute = ray(token_env="RAY_TOKEN")
    with pytest.raises(UsageError) as caught:
        compute.token()
    assert "RAY_TOKEN" in caught.value.message
    monkeypatch.setenv("RAY_TOKEN", "s3cret\n")
    assert compute.token() == "s3cret"
    assert ray().token() is None
    add_compute(compute)
    assert "s3cret" not in json.dumps(json.loads(computes_path().read_text()))


def test_the_url_of_a_deployment():
    assert parse_url("modelkit://gpu/chat") == ("gpu", "chat")


@pytest.mark.parametrize(
    "url", ["modelkit://gpu", "modelkit:///chat", "modelkit://gpu/", "modelkit://a/b/c", "http://a/b"]
)
def test_what_is_no_url_of_a_deployment(url):
    with pytest.raises(UsageError, match="names no deployment"):
        parse_url(url)
