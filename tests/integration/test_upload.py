"""`modelkit upload` and its sisters as a person runs them: what is printed, attached, signed, and never sent."""

import base64
import io
import json
import platform
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from pathlib import Path

import pytest

from bench_record import measured
from greeter import MODEL, WEIGHTS, with_weights, write_greeter
from modelkit import Client
from modelkit.cli.app import main
from modelkit.config import BENCH_RECORD, load_config
from modelkit.registry import Draft, LayoutReference, copy
from modelkit.registry.base import MANIFEST
from modelkit.registry.layout import Layout
from modelkit.versions.attachments import attach, attached
from modelkit.versions.local import materialize
from modelkit.versions.media_types import CYCLONEDX, IN_TOTO
from modelkit.versions.record import content_digest, write_record
from modelkit.versions.version import compose

SECRETS = {
    "GREETER_TOKEN": "correct-horse-battery-staple",
    "MODELKIT_REGISTRY_PASSWORD": "difference-engine-1842",
    "HF_TOKEN": "hf_" + "Q" * 34,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELKIT_REGISTRY_DIR", str(tmp_path / "versions"))
    monkeypatch.chdir(tmp_path)
    return write_greeter(tmp_path / "greeter")


@pytest.fixture
def run(capsys):
    def run(*arguments, code=0):
        arguments = [str(argument) for argument in arguments]
        if "upload" in arguments and "--builder" not in arguments:
            arguments.append("--no-image")  # a build takes a while, and has tests of its own
        assert main(arguments) == code, capsys.readouterr().err
        return capsys.readouterr()

    return run


@pytest.fixture
def keys(tmp_path):
    for name in ("sign", "other"):
        command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        command = ["openssl", "ec", "-in", f"{name}.key", "-pubout", "-out", f"{name}.pub"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def test_from_folder_to_registry_and_back(folder, run, registry, tmp_path):
    name = f"{registry.host}/team/{uuid.uuid4().hex[:8]}"
    first = run("upload", folder, "--to", name)
    assert first.out.startswith(f"{name}:v1@sha256:")
    assert f"✓ {name}:v1 is there; sent 1.3 MB" in first.err
    second = run("upload", folder, "--to", name)
    assert (second.out, "is unchanged; nothing had to be sent" in second.err) == (first.out, True)
    (folder / "model.py").write_text(MODEL + "# changed\n")
    third = json.loads(run("upload", folder, "--to", f"{name}:prod", "--json").out)
    assert (third["reference"], third["sent_bytes"] < 20_000) == (f"{name}:v2", True)
    listed = json.loads(run("versions", name, "--json").out)
    assert [(each["tag"], sorted(each["tags"])) for each in listed] == [
        ("v2", ["latest", "prod"]),
        ("v1", []),
    ]
    assert "stable is v2 now" in run("upload", folder, "--to", f"{name}:stable").err
    pulled = run("pull", f"{name}:v1", "--to", tmp_path / "pulled")
    assert pulled.out.strip() == str(tmp_path / "pulled")
    assert (tmp_path / "pulled/model.py").read_text() == MODEL
    assert (tmp_path / "pulled/checkpoint/model.safetensors").read_bytes() == WEIGHTS["model.safetensors"]
    assert "~ model.py" in run("diff", f"{name}:v1", "v2").out
    assert "content     ok" in run("verify", f"{name}:v2").out


def test_versions_on_this_machine(folder, run, monkeypatch):
    assert "there are no versions on this machine" in run("versions").err
    run("upload", folder)
    assert run("versions").out.splitlines()[1].startswith("greeter:v1")
    assert run("versions", "./greeter").out == run("versions", "greeter").out
    monkeypatch.chdir(folder)
    (folder / "model.py").write_text(MODEL + "# changed\n")
    run("upload")
    assert "~ model.py" in run("diff", "v1", "v2").out
    assert "there is no greeter:v9" in run("pull", "greeter:v9", "--to", "x", code=1).err


def test_what_breaks_callers_is_refused_with_the_list(folder, run):
    run("upload", folder)
    (folder / "model.py").write_text(MODEL.replace("name: str", "who: str").replace("{name}", "{who}"))
    refused = run("upload", folder, code=2)
    assert "greet: argument 'name' was renamed to 'who'" in refused.err
    assert "--allow-breaking" in refused.err
    allowed = run("upload", folder, "--allow-breaking")
    assert "breaks callers: greet: argument 'name' was renamed to 'who'" in allowed.err


def test_an_sbom_and_where_it_came_from_are_attached(folder, run, tmp_path):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    run("upload", folder)
    layout = Layout(LayoutReference(tmp_path / "versions/greeter"))
    digest = layout.find_manifest("v1").digest
    (sbom,) = attached(layout, digest, CYCLONEDX)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.decode()) is None
    components = {each["name"]: each for each in json.loads(sbom)["components"]}
    assert components["numpy"]["purl"] == "pkg:pypi/numpy@2.1.0"
    assert components["default/model.safetensors"]["hashes"][0]["alg"] == "SHA-256"
    (statement,) = [json.loads(each) for each in attached(layout, digest, IN_TOTO)]
    assert statement["subject"][0]["digest"]["sha256"] == digest.partition(":")[2]
    run("upload", folder)
    assert len(attached(layout, digest, IN_TOTO)) == 1


def test_an_attachment_that_was_changed_is_found(folder, run, tmp_path):
    run("upload", folder)
    layout = Layout(LayoutReference(tmp_path / "versions" / "greeter"))
    (attachment,) = (
        each for each in layout.referrers(layout.find_manifest("v1").digest) if each.artifact_type == IN_TOTO
    )
    blob = layout.blob_path(layout.get_manifest(attachment.digest).blobs[-1].digest)
    blob.write_bytes(blob.read_bytes().replace(b"finishedOn", b"finishedOff"[:10]))
    (line,) = (
        line for line in run("verify", "greeter:v1", code=1).out.splitlines() if line.startswith("provenance")
    )
    assert "FAILED" in line
    assert "is not what its digest says" in line


@pytest.mark.parametrize("data", [b"not JSON", b"[]", b'{"subject": [{}]}'])
def test_an_attachment_of_somebody_else_does_not_stop_a_verification(folder, run, tmp_path, data):
    run("upload", folder)
    layout = Layout(LayoutReference(tmp_path / "versions" / "greeter"))
    attach(layout, layout.get_manifest("v1"), IN_TOTO, data)
    lines = run("verify", "greeter:v1", code=1).out.splitlines()
    assert any(line.startswith("provenance") and "not written as it should be" in line for line in lines)
    assert any(line.startswith("signature") for line in lines)


def test_the_record_of_a_benchmark_goes_along(folder, run, registry, keys):
    name = f"{registry.host}/team/{uuid.uuid4().hex[:8]}"
    first = json.loads(run("upload", folder, "--to", name, "--json").out)
    assert first["record"] is None
    write_record(folder, measured(content_digest(folder)))
    for to in ((), ("--to", name, "--sign-key", keys / "sign.key")):
        told = run("upload", folder, *to)
        assert "with the benchmark's record of 2026-01-01T00:00:00+00:00" in told.err
    second = json.loads(run("upload", folder, "--to", name, "--json").out)
    assert (second["digest"], second["record"]) == (first["digest"], "run-0")
    assert (
        run("versions", "greeter")
        .out.splitlines()[1]
        .endswith("1,000 tokens/s at c=100, TTFT 20 ms, vllm, NVIDIA H200")
    )
    (listed,) = json.loads(run("versions", "greeter", "--json").out)
    assert listed["record"]["output_tok_s"] == 1000.0
    assert "measured" not in run("versions", name).out
    assert "record      ok" in run("verify", f"{name}:v1", "--key", keys / "sign.pub").out
    run("pull", f"{name}:v1", "--to", "pulled")
    assert json.loads(Path("pulled", BENCH_RECORD).read_bytes())["run_id"] == "run-0"


def test_a_record_of_another_state_is_a_warning(folder, run):
    write_record(folder, measured(content_digest(folder)))
    run("upload", folder)
    (folder / "model.py").write_text(MODEL + "# changed\n")
    told = run("upload", folder, "--json")
    assert "the benchmark's record is not attached: it is not of this code, config and weights" in told.err
    assert json.loads(told.out)["record"] is None
    write_record(folder, measured(content_digest(folder), speed=120.0))
    run("upload", folder)
    assert "~ vllm grpc c=100 tokens/s: 1,000.0 -> 1,200.0" in run("diff", "greeter:v1", "v2").out
    (folder / BENCH_RECORD).write_text("{")
    assert "it is damaged" in run("upload", folder).err


def test_a_signature_that_openssl_checks_too(folder, run, keys, registry, tmp_path):
    for name in ("greeter", f"{registry.host}/team/{uuid.uuid4().hex[:8]}"):
        run("upload", folder, "--sign-key", keys / "sign.key", "--to", name)
        assert "signature   ok" in run("verify", name, "--key", keys / "sign.pub").out
        assert "has not signed it" in run("verify", name, "--key", keys / "other.pub", code=1).out
    layout = Layout(LayoutReference(tmp_path / "versions/greeter"))
    digest = layout.find_manifest("v1").digest
    manifest = layout.get_manifest(f"{digest.replace(':', '-')}.sig")
    layer = manifest.blobs[1]
    payload = b"".join(layout.read_blob(layer))
    assert json.loads(payload)["critical"]["image"]["docker-manifest-digest"] == digest
    (tmp_path / "payload").write_bytes(payload)
    (tmp_path / "signature").write_bytes(
        base64.b64decode(layer.annotations["dev.cosignproject.cosign/signature"])
    )
    command = ["openssl", "dgst", "-sha256", "-verify", "sign.pub", "-signature", "signature", "payload"]
    assert (
        "Verified OK"
        in subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    )
    again = run("upload", folder, "--sign-key", keys / "sign.key")
    assert f"signed with {keys / 'sign.key'}" in again.err
    assert layout.get_manifest(f"{digest.replace(':', '-')}.sig").digest == manifest.digest
    run("upload", folder, "--sign-key", keys / "other.key")
    for name in ("sign", "other"):
        assert "signature   ok" in run("verify", "greeter", "--key", keys / f"{name}.pub").out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "is no private key in PEM"),
        ("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----", "in cosign's own way"),
    ],
)
def test_a_key_that_will_not_do_is_said_before_any_work(folder, run, tmp_path, text, message):
    (tmp_path / "bad.key").write_text(text)
    assert message in run("upload", folder, "--sign-key", tmp_path / "bad.key", code=2).err
    assert "cannot be read" in run("upload", folder, "--sign-key", tmp_path / "none.key", code=2).err
    assert not (tmp_path / "versions").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [("ghcr.io/Ada/Chat", "write ghcr.io/ada/chat"), ("greeter@sha256:" + "0" * 64, "names a digest")],
)
def test_a_target_that_will_not_do_is_said_before_any_work(folder, run, target, message):
    assert message in run("upload", folder, "--to", target, code=2).err


# --------------------------------------------------------------------------------------------------------------- images


def write_base(folder):
    """Write a base image, as a layout, that has as much of a Python as a builder looks for."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("usr/bin/python3.11"))
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, "python3.11"
        tar.addfile(link)
    draft = Draft()
    layer = draft.add_bytes(buffer.getvalue(), "application/vnd.oci.image.layer.v1.tar")
    image = {"architecture": platform_of_this_machine(), "os": "linux", "config": {"Env": ["PATH=/usr/bin"]}}
    image["rootfs"] = {"type": "layers", "diff_ids": [layer.digest]}
    config = draft.add_bytes(json.dumps(image).encode(), "application/vnd.oci.image.config.v1+json")
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.to_json(),
        "layers": [layer.to_json()],
    }
    copy(draft, Layout(LayoutReference(folder)), draft.add_manifest(document).digest, tags=["v1"])


def platform_of_this_machine():
    return {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def test_an_upload_builds_the_image_that_goes_along(folder, run, tmp_path):
    write_base(tmp_path / "base")
    (folder / "requirements.txt").write_text("")
    build = f"build: {{image: 'oci:{tmp_path}/base:v1', python_version: '3.11'}}\n"
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + build)
    first = run("upload", folder, "--builder", "oci")
    assert "image" in first.err
    second = run("upload", folder, "--builder", "oci")
    assert (second.out, "is unchanged; nothing had to be sent" in second.err) == (first.out, True)
    listed = json.loads(run("versions", "greeter", "--json").out)
    assert listed[0]["platforms"] == [f"linux/{platform_of_this_machine()}"]
    command = ["skopeo", "inspect", f"oci:{tmp_path}/versions/greeter:v1"]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert seen["Labels"]["org.opencontainers.image.title"] == "greeter"


def test_an_image_that_cannot_be_built_says_how_to_do_without(folder, run):
    (folder / "config.yaml").write_text(
        (folder / "config.yaml").read_text() + "build: {image: 'oci:/nowhere:v1'}\n"
    )
    refused = run("upload", folder, "--builder", "oci", code=1)
    assert "--no-image" in refused.err


# ------------------------------------------------------------------------------------------------------------- secrets


def plant_secrets(folder, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MODELKIT_REGISTRY_HOST", "registry.example.com")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config + "secrets:\n  - env_var: GREETER_TOKEN\n")
    (folder / ".env").write_text("\n".join(f"{name}={value}" for name, value in SECRETS.items()))
    commands = [
        ["init", "-q"],
        ["remote", "add", "origin", f"https://ada:{SECRETS['HF_TOKEN']}@example.com/greeter.git"],
        ["add", "config.yaml", "model.py", "requirements.txt"],
        ["-c", "user.name=ada", "-c", "user.email=ada@example.com", "commit", "-q", "-m", "x"],
    ]
    (folder / ".gitignore").write_text("checkpoint\n.env\n.gitignore\n__pycache__\nmodelkit.lock\n")
    for command in commands:
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)


def test_a_planted_secret_is_in_no_blob_manifest_or_log(folder, run, registry, tmp_path, monkeypatch, keys):
    plant_secrets(folder, monkeypatch)
    name = f"{registry.host}/team/{uuid.uuid4().hex[:8]}"
    told = [run("-v", "upload", folder, "--sign-key", keys / "sign.key", *to) for to in ((), ("--to", name))]
    assert "left out: it looks like a secret" in told[0].err
    layout = Layout(LayoutReference(tmp_path / "versions/greeter"))
    (statement,) = attached(layout, layout.find_manifest("v1").digest, IN_TOTO)
    assert b"git+https://example.com/greeter.git" in statement
    places = [
        path
        for root in (tmp_path / "versions", registry.storage)
        for path in root.rglob("*")
        if path.is_file()
    ]
    texts = {str(path): path.read_bytes() for path in [*places, registry.log_path]}
    texts |= {f"output {number}": (each.out + each.err).encode() for number, each in enumerate(told)}
    assert len(texts) > 20
    for value in SECRETS.values():
        forms = [value.encode(), base64.b64encode(value.encode()).rstrip(b"="), value.encode().hex().encode()]
        assert [place for place, text in texts.items() if any(form in text for form in forms)] == []


def test_a_secret_in_the_code_stops_the_upload(folder, run, tmp_path, monkeypatch):
    plant_secrets(folder, monkeypatch)
    (folder / "model.py").write_text(MODEL + f"TOKEN = '{SECRETS['GREETER_TOKEN']}'\n")
    refused = run("upload", folder, code=2)
    assert "the file holds the value of GREETER_TOKEN" in refused.err
    assert SECRETS["GREETER_TOKEN"] not in refused.err
    (folder / "model.py").write_text(MODEL)
    refused = run("upload", folder, "--set", f"model.notes={SECRETS['GREETER_TOKEN']}", code=2)
    assert "the config holds the value of GREETER_TOKEN" in refused.err
    assert not (tmp_path / "versions").exists()


@pytest.mark.parametrize("verb", ["upload", "pull"])
def test_ctrl_c_ends_at_once_and_without_a_word(folder, run, proxy, tmp_path, verb):
    name = f"{proxy.host}/team/{uuid.uuid4().hex[:8]}"
    arguments = ["upload", "--no-image", str(folder), "--to", name]
    if verb == "pull":
        run(*arguments)
        arguments = ["pull", name, "--to", str(tmp_path / "pulled")]
    proxy.rules.bytes_per_s = 100_000
    num_before = len(proxy.requests)
    command = [sys.executable, "-m", "modelkit", "-q", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not any("/blobs/" in path for _, path, _ in proxy.requests[num_before:]):
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "")
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("model_id", ["{}/elsewhere", "../elsewhere", "."])
def test_a_version_does_not_choose_the_folder_that_it_is_pulled_into(folder, run, tmp_path, model_id):

    layout = Layout(LayoutReference(tmp_path / "versions" / "greeter"))
    draft, index = compose(with_weights(folder).content)
    document = json.loads(index.content)
    document["annotations"]["org.opencontainers.image.title"] = model_id.format(tmp_path)
    copy(draft, layout, draft.add_manifest(document).digest, tags=["v1"])
    assert "--to DIR" in run("pull", "greeter:v1", code=2).err
    run("pull", "greeter:v1", "--to", tmp_path / "here")
    assert (tmp_path / "here" / "model.py").read_text() == MODEL


# ------------------------------------------------------------------------------------------------------------- serving


def test_a_version_is_nothing_to_watch(folder, run):
    assert (
        "greeter:v1 is a version, which never changes" in run("serve", "greeter:v1", "--reload", code=2).err
    )


@pytest.mark.parametrize("target", ["greeter:v1", "./layout:v1", "oci:layout"])
def test_a_version_is_served_by_its_name(folder, run, tmp_path, target):
    run("upload", folder, *([] if target == "greeter:v1" else ["--to", f"oci:{tmp_path}/layout"]))
    command = [sys.executable, "-m", "modelkit", "serve", target, "--local", "--port", "0", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        address = json.loads(line)["address"]
        with Client(address) as client:
            assert client.methods.greet(name="Ada") == "hello Ada"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_what_was_laid_over_config_yaml_holds_for_the_version_too(folder, run, tmp_path):
    (folder / "config.prod.yaml").write_text("server: {max_queue: 7}\n")
    run("upload", folder, "--env", "prod", "--set", "server.max_concurrency=3")
    out = json.loads(run("pull", "greeter:v1", "--to", tmp_path / "here", "--json").out)
    assert out["env"] == "prod"
    assert out["set"][0] == "server.max_concurrency=3"
    served = materialize("greeter:v1")
    config = load_config(served.folder, environment=served.environment, overrides=served.overrides)
    assert (config.server.max_queue, config.server.max_concurrency) == (7, 3)
    again = materialize("greeter:v1")
    assert again == served
    run("upload", folder)
    assert (materialize("greeter:v2").environment, materialize("greeter:v2").settings) == (None, ())


def test_a_version_in_a_registry_is_not_served_offline(folder, run, own_registry):
    reference = own_registry.reference("greeter").at(tag="v1")
    own_registry.kill()  # whoever asks it all the same gets another message
    err = run("serve", reference, "--offline", code=1).err
    assert f"{reference} is in a registry, and the network may not be used" in err
    assert "modelkit pull" in err


def test_a_script_is_told_what_breaks_callers_and_what_is_the_same(folder, run):
    run("upload", folder, "--no-image")
    same = json.loads(run("diff", "greeter:v1", "v1", "--json").out)
    assert {"config", "methods", "files", "weights", "breaking"} <= same.keys()
    assert not any(same[name] for name in same.keys() - {"old", "new"})
    (folder / "model.py").write_text(MODEL.replace("name: str,", "whom: str,").replace("{name}", "{whom}"))
    refused = json.loads(run("upload", folder, "--no-image", "--json", code=2).out)
    assert refused["breaking"]


def test_a_lock_says_nothing_of_a_version_without_weights(folder, run):
    run("upload", folder, "--no-image", "--no-weights")
    assert "lock        -" in run("verify", "greeter").out


def test_a_version_has_the_lock_of_the_settings_it_was_uploaded_with(folder, run, tmp_path):
    run("upload", folder, "--no-image")  # writes the folder's own lock
    (folder / "checkpoint").rename(folder / "other")
    (folder / "other/model.safetensors").write_bytes(b"others")
    run("upload", folder, "--no-image", "--set", "checkpoints.path=other")
    run("pull", "greeter:v2", "--to", tmp_path / "pulled")
    locked = json.loads((tmp_path / "pulled/modelkit.lock").read_text())["checkpoints"]["default"]
    assert locked["path"] == "other"
    assert {file["path"]: file["size_bytes"] for file in locked["files"]}["model.safetensors"] == 6
