"""The benchmark's record travels with what it was measured of, with nothing of the machine, and is no part of it."""

import json

import pytest

from bench_record import measured
from greeter import MODEL, with_weights, write_greeter
from modelkit.benchmark.results import Store as Run
from modelkit.config import BENCH_RECORD
from modelkit.errors import Problem, RegistryError
from modelkit.package import collect
from modelkit.registry import LayoutReference, open_store
from modelkit.versions.attachments import CREATED, attach, attached
from modelkit.versions.catalog import list_entries
from modelkit.versions.diff import diff
from modelkit.versions.folder import add_weights, read_folder
from modelkit.versions.media_types import RECORD
from modelkit.versions.pull import pull
from modelkit.versions.record import (
    attach_record,
    attached_record,
    content_digest,
    figures,
    headline,
    measured_at,
    read_record,
    write_record,
)
from modelkit.versions.upload import check_upload, upload, version_numbers
from modelkit.versions.verify import verify
from modelkit.versions.version import compose, read_version


def send(folder, store):
    """Upload a folder with its record, as the command does."""
    read = with_weights(folder)
    record = read_record(read)
    assert not isinstance(record, Problem), record
    preflight = check_upload(store, read.content.signatures)
    draft, index = compose(read.content)
    return upload(
        draft,
        index,
        store,
        preflight,
        attach=None if record is None else lambda store, index: attach_record(store, index, record),
    )


def test_measuring_again_makes_no_new_version(folder, store):
    first = send(folder, store)
    for minutes in (1, 2):
        write_record(folder, measured(content_digest(folder), minutes=minutes))
        again = send(folder, store)
        assert (again.digest, again.is_new, again.copied.num_sent) == (first.digest, False, 0)
        assert attached_record(store, first.digest)["run_id"] == f"run-{minutes}"
    assert version_numbers(store) == [1]


def test_a_record_is_sent_once_and_the_last_measurement_counts(folder, store):
    digest = send(folder, store).digest
    for minutes in (2, 1, 2):
        write_record(folder, measured(content_digest(folder), minutes=minutes))
        send(folder, store)
    assert len(attached(store, digest, RECORD)) == 2
    assert attached_record(store, digest)["run_id"] == "run-2"


def test_a_run_that_went_on_counts_by_its_end(folder, store):
    early, late = (measured(content_digest(folder), minutes=minutes) for minutes in (1, 2))
    # It began first, was cut, and had its last level after the other one's.
    late["started_at"] = "2025-12-31T00:00:00+00:00"
    for record in (late, early):
        write_record(folder, record)
        digest = send(folder, store).digest
    assert attached_record(store, digest)["run_id"] == "run-2"
    assert measured_at(late) == "2026-01-01T00:02:00+00:00"
    assert measured_at({**late, "levels": []}) == late["started_at"]


def test_nothing_of_the_machine_travels(folder, store):
    write_record(folder, measured(content_digest(folder)))
    digest = send(folder, store).digest
    (data,) = attached(store, digest, RECORD)
    for word in (b"/home/ada", b"correct-horse", b"10.1.2.3", b"c0ffee", b"GPU-of-mine", b"command"):
        assert word not in data
    record = json.loads(data)
    assert [each["name"] for each in record["subjects"]] == ["vllm", "sglang"]
    assert {"config_hash", "gpu_used_before_bytes", "warnings"} <= record["subjects"][0].keys()
    assert {each["subject"] for each in record["levels"]} == {"vllm", "sglang"}
    assert record["gpu_memory_bytes_max"] == 100_000


def test_a_record_comes_back_with_the_folder_and_may_go_again(folder, store, tmp_path):
    write_record(folder, measured(content_digest(folder)))
    digest = send(folder, store).digest
    pulled = pull(read_version(store, "v1"), tmp_path / "pulled").folder
    assert json.loads((pulled / BENCH_RECORD).read_bytes()) == attached_record(store, digest)
    assert content_digest(pulled) == content_digest(folder)
    again = send(pulled, store)
    assert (again.digest, again.is_new) == (digest, False)
    assert len(attached(store, digest, RECORD)) == 1


def change_code(folder):
    (folder / "model.py").write_text(MODEL + "# changed\n")


def change_config(folder):
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("Greets.", "Greets people."))


def change_weights(folder):
    (folder / "checkpoint/model.safetensors").write_bytes(b"other weights")


@pytest.mark.parametrize("change", [change_code, change_config, change_weights])
def test_figures_of_something_else_are_not_passed_off_as_these(folder, change):
    write_record(folder, measured(content_digest(folder)))
    change(folder)
    found = read_record(with_weights(folder))
    assert isinstance(found, Problem)
    assert (found.severity, found.path) == ("warning", folder / BENCH_RECORD)
    assert "it is not of this code, config and weights" in found.message
    assert "modelkit bench" in found.cure


def test_settings_count_and_the_lock_that_an_upload_writes_does_not(folder):
    before = content_digest(folder)
    assert content_digest(folder, overrides=["model.description=Other."]) != before
    read = with_weights(folder)
    (folder / "modelkit.lock").write_bytes(read.content.lock)
    assert content_digest(folder) == before
    write_record(folder, measured(before))
    assert read_record(with_weights(folder))["run_id"] == "run-0"
    other = add_weights(read_folder(folder, overrides=["model.description=Other."]), _lock(folder), {})
    assert isinstance(read_record(other), Problem)


def _lock(folder):
    from modelkit.checkpoints.lock import Lock

    return Lock.read(folder)


def changed(part, key, value):
    record = measured("x")
    record[part][0][key] = value
    return record


def told_of(store, tmp_path, reason):
    """A list and a difference show nothing of a record that cannot be read; `verify` and `pull` say why."""
    (entry,) = list_entries(store, with_records=True)
    assert (entry.record, entry.problem) == (None, "")
    version = read_version(store, "v1")
    assert diff(version, version).record == ()
    check = next(each for each in verify(version) if each.name == "record")
    assert (check.is_fine, reason in check.detail) == (False, True)
    pulled = pull(version, tmp_path / "pulled")
    assert (pulled.folder / "model.py").is_file()
    assert not (pulled.folder / BENCH_RECORD).exists()
    (note,) = pulled.notes
    assert reason in note


@pytest.mark.parametrize(
    "data",
    [
        b'{"schema_version": 1, "levels": [',
        b"[]",
        b"7",
        b'"levels"',
        b"{}",
        b"\xff",
        json.dumps({**measured("x"), "started_at": 7}).encode(),
        json.dumps({**measured("x"), "levels": [{"subject": "a"}]}).encode(),
        json.dumps(changed("subjects", "engine", 7)).encode(),
        json.dumps(changed("subjects", "protocol", ["grpc"])).encode(),
        json.dumps(changed("subjects", "name", "vllm\x1b[2J")).encode(),
        json.dumps(changed("levels", "load", "c=1\nforged")).encode(),
        json.dumps(changed("gpus", "name", "H200\x07")).encode(),
        json.dumps({**measured("x"), "workload": {"kind": "a\rb"}}).encode(),
        json.dumps({**measured("x"), "workload": {"kind": {"a\x1b[2J": 1}}}).encode(),
        json.dumps({**measured("x"), "started_at": "2026-01-01\x1b00:00"}).encode(),
    ],
)
def test_a_damaged_record_is_a_doubt_here_and_told_of_there(folder, tmp_path, data):
    (folder / BENCH_RECORD).parent.mkdir(parents=True)
    (folder / BENCH_RECORD).write_bytes(data)
    found = read_record(with_weights(folder))
    assert isinstance(found, Problem)
    assert ("it is damaged" in found.message, "writes it anew" in found.cure) == (True, True)
    (folder / BENCH_RECORD).unlink()
    with open_store(LayoutReference(tmp_path / "layout")) as store:
        digest = send(folder, store).digest
        attach(store, store.get_manifest(digest), RECORD, data, {CREATED: "9"})
        with pytest.raises(RegistryError, match="not written as it should be"):
            attached_record(store, digest)
        told_of(store, tmp_path, "is not written as it should be")


@pytest.mark.parametrize("secret", ["hf_" + "Q" * 34, "correct-horse-battery-staple"])
def test_a_secret_in_a_record_stays_here(folder, monkeypatch, secret):
    monkeypatch.setenv("OPENAI_API_KEY", "correct-horse-battery-staple")
    record = measured(content_digest(folder))
    record["subjects"][0]["engine_args"] = {"args": {"api-key": secret}}
    write_record(folder, record)
    found = read_record(with_weights(folder))
    assert isinstance(found, Problem)
    assert "not attached: the file holds" in found.message
    assert secret not in found.message


def test_a_folder_that_was_never_measured_has_no_record(folder):
    assert read_record(with_weights(folder)) is None


def test_runs_are_no_part_of_a_package(folder):
    before = collect(folder).digest
    write_record(folder, measured("x"))
    (folder / ".modelkit/bench/20260101-000000").mkdir()
    (folder / ".modelkit/bench/20260101-000000/run.json").write_text("{}")
    assert collect(folder).digest == before


def test_nor_are_runs_that_somebody_has_put_into_the_model_folder(folder):
    before, digest = collect(folder).digest, content_digest(folder)
    Run.open(folder / "runs/first", {"settings": {}})
    (folder / "runs/first/serve-vllm.log").write_text("/home/ada")
    assert (collect(folder).digest, content_digest(folder)) == (before, digest)
    # A run.json by itself is anybody's.
    (folder / "runs/run.json").write_bytes((folder / "runs/first/run.json").read_bytes())
    assert [file.path for file in collect(folder).files if "run" in file.path] == ["runs/run.json"]


def test_the_headline_is_the_highest_load_of_the_own_engine():
    record = measured("x")
    assert headline(record, "vllm") == {
        "measured_at": "2026-01-01T00:00:00+00:00",
        "engine": "vllm",
        "gpu": "NVIDIA H200",
        "load": "c=100",
        "output_tok_s": 1000.0,
        "ttft_p50_ms": 20.0,
    }
    assert headline(record, "sglang")["output_tok_s"] == 2000.0
    assert headline(record, None)["load"] == "c=200"
    assert headline({**record, "levels": []}, "vllm") is None


def test_a_time_that_nobody_saw_is_none():
    record = measured("x")
    record["levels"][1]["ttft_ms"]["p50"] = None
    del record["levels"][0]["tpot_ms"]
    assert [(each.ttft_p50_ms, each.tpot_p50_ms) for each in figures(record)][:2] == [
        (20.0, None),
        (None, 5.0),
    ]


def test_a_list_shows_what_was_measured_where_a_look_is_free(folder, store):
    write_record(folder, measured(content_digest(folder)))
    send(folder, store)
    (plain,) = list_entries(store)
    assert "record" not in plain.as_json()
    (entry,) = list_entries(store, with_records=True)
    assert entry.as_json()["record"]["load"] == "c=100"


def test_a_difference_shows_how_the_figures_moved(folder, store):
    write_record(folder, measured(content_digest(folder)))
    send(folder, store)
    change_code(folder)
    write_record(folder, measured(content_digest(folder), speed=120.0))
    send(folder, store)
    old, new = read_version(store, "v1"), read_version(store, "v2")
    assert [(each.name, each.old, each.new) for each in diff(old, new).record] == [
        ("sglang grpc c=100 tokens/s", "2,000.0", "2,400.0"),
        ("vllm grpc c=1 tokens/s", "100.0", "120.0"),
        ("vllm grpc c=100 tokens/s", "1,000.0", "1,200.0"),
    ]
    assert diff(old, old).record == ()


def test_a_difference_says_nothing_where_one_was_never_measured(folder, store):
    send(folder, store)
    change_code(folder)
    write_record(folder, measured(content_digest(folder)))
    send(folder, store)
    assert diff(read_version(store, "v1"), read_version(store, "v2")).record == ()


def test_verify_says_when_it_was_measured(folder, store):
    send(folder, store)
    version = read_version(store, "v1")

    def told():
        return next(each for each in verify(version) if each.name == "record")

    assert (told().is_fine, told().detail) == (None, "none is attached")
    write_record(folder, measured(content_digest(folder)))
    send(folder, store)
    assert (told().is_fine, told().detail) == (True, "measured 2026-01-01T00:00:00+00:00")


def test_a_damaged_blob_stops_nothing_but_is_told_of(tmp_path):
    folder = write_greeter(tmp_path / "greeter")
    write_record(folder, measured(content_digest(folder)))
    with open_store(LayoutReference(tmp_path / "layout")) as store:
        digest = send(folder, store).digest
        (attachment,) = store.referrers(digest)
        blob = store.blob_path(store.get_manifest(attachment.digest).blobs[-1].digest)
        blob.write_bytes(blob.read_bytes().replace(b"vllm", b"VLLM"))
        told_of(store, tmp_path, "is not what its digest says")


@pytest.mark.parametrize("store", ["layout"], indirect=True)
def test_times_that_are_none_stop_nothing(folder, store, tmp_path):
    write_record(folder, measured(content_digest(folder)))
    digest = send(folder, store).digest
    attach(store, store.get_manifest(digest), RECORD, b"{}", {CREATED: 7})
    told_of(store, tmp_path, "is not written as it should be")


@pytest.mark.parametrize("store", ["layout"], indirect=True)
def test_a_record_that_the_network_kept_back_is_told_of(folder, store, tmp_path, monkeypatch, capsys):
    from modelkit.cli.app import main

    send(folder, store)

    def refuse(*_):
        raise RegistryError("the connection was cut")

    monkeypatch.setattr("modelkit.versions.record.newest_attached", refuse)
    told_of(store, tmp_path, "the connection was cut")
    assert main(["pull", f"oci:{store.folder}:v1", "--to", str(tmp_path / "again")]) == 0
    assert "the folder has no record of a benchmark: the connection was cut" in capsys.readouterr().err
