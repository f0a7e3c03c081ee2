import pytest

from modelkit.checkpoints.base import ChangedFileError, SourceFile
from modelkit.checkpoints.ranges import HttpRanges
from modelkit.errors import LoadError


@pytest.fixture
def ranges():
    ranges = HttpRanges("org/tiny", lambda response, path: None)
    yield ranges
    ranges.close()


@pytest.fixture
def weights(hub):
    repo = hub.repos["org/tiny"]
    commit = repo.branches["main"]
    content = repo.commits[commit]["model.safetensors"]
    file = SourceFile(path="model.safetensors", size_bytes=content.size_bytes, sha256=content.sha256)
    return file, f"{hub.url}/org/tiny/resolve/{commit}/model.safetensors", content.data


def read(ranges, file, url, start=0, stop=None, headers=None):
    with ranges.open(file, url, headers or {}, start, stop) as blocks:
        return b"".join(blocks)


def test_any_range_can_be_read(ranges, weights):
    file, url, data = weights
    assert read(ranges, file, url) == data
    assert read(ranges, file, url, 5) == data[5:]
    assert read(ranges, file, url, 5, 9) == data[5:9]
    assert read(ranges, file, url, 5, 10**9) == data[5:]
    assert read(ranges, file, url, 7, 7) == b""


def test_the_way_to_the_cdn_is_remembered_until_it_expires(hub, ranges, weights):
    file, url, data = weights
    read(ranges, file, url, 0, 9)
    hub.requests.clear()
    assert read(ranges, file, url, 9, 19) == data[9:19]
    assert [each.partition(" ")[0] for each in hub.requests] == ["cdn"]
    hub.faults.expires_after = 0
    hub.requests.clear()
    assert read(ranges, file, url, 19, 29) == data[19:29]
    assert [each.partition(" ")[0] for each in hub.requests] == ["cdn", "hub", "cdn"]


def test_the_token_stays_with_its_host(hub, ranges, weights):
    file, url, _ = weights
    for start in (0, 10):
        read(ranges, file, url, start, start + 5, {"authorization": "Bearer hf_secret"})
    assert [each.partition(" ")[0] for each in hub.authorized] == ["hub"]


def test_another_size_is_another_file(ranges, weights):
    file, url, _ = weights
    listed = SourceFile(path=file.path, size_bytes=file.size_bytes + 1, sha256=file.sha256)
    for start in (0, 5):
        with pytest.raises(ChangedFileError):
            read(ranges, listed, url, start)


def test_the_size_is_asked_for_without_reading(hub, ranges, weights):
    file, url, data = weights
    assert ranges.size_bytes(file.path, url, {}) == len(data)
    hub.faults.has_ranges = False
    assert ranges.size_bytes(file.path, url, {}) == len(data)


def test_what_is_no_address_says_so(ranges, weights):
    file, _, _ = weights
    with pytest.raises(LoadError, match="address that is none"):
        read(ranges, file, "http://[::bad/x")
