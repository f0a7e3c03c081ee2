"""Packages: which files belong to one, a digest and a bundle that depend on nothing else, and no secret inside."""

import os
import tarfile
from io import BytesIO

import pytest

from modelkit.errors import ConfigError, UsageError
from modelkit.package import bundle, collect, unpack


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    for name, text in {
        "config.yaml": "model: {id: chat}\n",
        "model.py": "class Chat: ...\n",
        "requirements.txt": "numpy\n",
        "data/labels.txt": "a\nb\n",
        "data/notes/ä.txt": "ä",
        ".git/config": "[remote]\n",
        "__pycache__/model.pyc": "x",
        ".venv/bin/python": "x",
    }.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return made


def names(package):
    return [file.path for file in package.files]


ALL = ["config.yaml", "data/labels.txt", "data/notes/ä.txt", "model.py", "requirements.txt"]


def test_what_belongs_to_no_model_is_left_out_without_a_word(folder):
    package = collect(folder)
    assert names(package) == ALL
    assert package.warnings == ()


def test_a_checkpoint_is_left_out(folder):
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint/model.safetensors").write_bytes(b"x" * 100)
    assert names(collect(folder, without=[folder / "checkpoint"])) == ALL


def test_modelkitignore_has_the_rules_of_gitignore(folder):
    (folder / ".modelkitignore").write_text("notes/\n*.txt\n!requirements.txt\n.modelkitignore\n")
    assert names(collect(folder)) == ["config.yaml", "model.py", "requirements.txt"]


def test_dockerignore_has_dockers_rules(folder):
    (folder / "notes").mkdir()
    (folder / "notes/x").write_text("")
    (folder / ".dockerignore").write_text("# comment\nnotes\n*.txt\n.dockerignore\n")
    assert names(collect(folder)) == ["config.yaml", "data/labels.txt", "data/notes/ä.txt", "model.py"]


@pytest.mark.parametrize(
    "name", [".env", ".env.production", "id_ed25519", "server.key", ".netrc", ".ssh/config"]
)
def test_what_looks_like_a_secret_is_left_out_with_a_warning(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("TOKEN=1")
    package = collect(folder)
    assert names(package) == ALL
    (warning,) = package.warnings
    assert warning.severity == "warning"
    assert ".modelkitignore" in warning.cure
    (folder / ".modelkitignore").write_text(f"{name.partition('/')[0]}\n.modelkitignore\n")
    assert collect(folder).warnings == ()


def test_an_example_of_a_secret_stays(folder):
    (folder / ".env.example").write_text("TOKEN=")
    assert ".env.example" in names(collect(folder))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x = 1\ntoken = 'hf_" + "a" * 34 + "'\n", "a Hugging Face token"),
        ("x = 1\nkey = '-----BEGIN RSA PRIVATE KEY-----'\n", "a private key"),
        ("x = 1\nkey = 'AKIA" + "A" * 16 + "'\n", "an AWS access key"),
        ("x = 1\npassword = 'correct horse'\n", "the value of DB_PASSWORD"),
    ],
)
def test_a_secret_inside_a_file_is_refused_and_not_shown(folder, text, what):
    (folder / "model.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        collect(folder, secret_values={"DB_PASSWORD": "correct horse"})
    (problem,) = caught.value.problems
    assert what in problem.message
    assert (problem.path, problem.line) == (folder / "model.py", 2)
    assert "correct horse" not in problem.message + problem.cure
    assert "hf_aaa" not in problem.message + problem.cure


def test_short_values_are_not_looked_for(folder):
    assert names(collect(folder, secret_values={"FLAG": "1"})) == ALL


def test_the_digest_depends_on_the_files_alone(folder, tmp_path):
    before = collect(folder).digest
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert collect(moved).digest == before
    (moved / "data/labels.txt").write_text("a\nc\n")
    assert collect(moved).digest != before


def test_the_digest_sees_a_program_become_one(folder):
    before = collect(folder).digest
    (folder / "model.py").chmod(0o755)
    assert collect(folder).digest != before


def test_the_bundle_is_the_same_bytes_and_says_nothing_of_this_machine(folder, tmp_path):
    first = b"".join(bundle(collect(folder))())
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    os.utime(moved / "model.py", (1, 1))
    assert b"".join(bundle(collect(moved))()) == first
    with tarfile.open(fileobj=BytesIO(first)) as tar:
        assert tar.getnames() == ALL
        assert {(member.uid, member.gid, member.mtime, member.uname) for member in tar} == {(0, 0, 0, "")}


def test_a_bundle_unpacks_to_the_same_package(folder, tmp_path):
    (folder / "model.py").chmod(0o755)
    package = collect(folder)
    unpack(bundle(package)(), tmp_path / "again")
    assert collect(tmp_path / "again").digest == package.digest


@pytest.mark.parametrize("text", ["more and more", "x"])
def test_a_file_that_changes_under_way_is_no_bundle(folder, text):
    package = collect(folder)
    (folder / "requirements.txt").write_text(text)
    with pytest.raises(UsageError, match=r"requirements\.txt has changed") as caught:
        b"".join(bundle(package)())
    assert ".modelkitignore" in caught.value.cure


def test_files_that_fill_their_blocks_and_empty_ones(folder, tmp_path):
    (folder / "full.txt").write_bytes(b"x" * 1024)
    (folder / "empty.txt").write_bytes(b"")
    package = collect(folder)
    unpack(bundle(package)(), tmp_path / "again")
    assert collect(tmp_path / "again").digest == package.digest


def evil(name, kind=tarfile.REGTYPE, link=""):
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info)
    return [buffer.getvalue()]


@pytest.mark.parametrize(
    "pieces",
    [evil("../outside"), evil("link", tarfile.SYMTYPE, "/etc/passwd"),
     evil("device", tarfile.CHRTYPE), [b"not a tar" * 100]],
)  # fmt: skip
def test_a_bundle_that_would_write_elsewhere_is_refused(tmp_path, pieces):
    (tmp_path / "inside").mkdir()
    with pytest.raises(UsageError) as caught:
        unpack(pieces, tmp_path / "inside")
    assert caught.value.cure
    assert not (tmp_path / "outside").exists()


def test_a_bundle_that_holds_more_than_is_listed_is_refused(folder, tmp_path):
    package = collect(folder)
    listed = {file.path for file in package.files} - {"model.py"}
    with pytest.raises(UsageError, match=r"it holds 'model\.py', which is no file of the package"):
        unpack(bundle(package)(), tmp_path / "again", listed)


def test_a_link_to_a_file_becomes_the_file_and_one_to_a_folder_is_warned_about(folder, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/file").write_text("content")
    (folder / "file").symlink_to(tmp_path / "shared/file")
    (folder / "shared").symlink_to(tmp_path / "shared")
    package = collect(folder)
    assert "file" in names(package)
    assert [warning.path for warning in package.warnings] == [folder / "shared"]
