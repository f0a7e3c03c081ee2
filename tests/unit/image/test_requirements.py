import pytest

from modelkit.errors import UsageError
from modelkit.image.requirements import read_requirements


def read(folder, text, provided=""):
    (folder / "requirements.txt").write_text(text)
    return read_requirements(folder, provided)


def test_a_folder_without_the_file_asks_for_nothing(tmp_path):
    assert read_requirements(tmp_path).lines == ()


def test_comments_and_continued_lines(tmp_path):
    found = read(tmp_path, "# all\nnumpy==2.3.5 \\\n  --hash=sha256:00  # why\n\nPillow>=11\n--pre\n")
    assert [(line.name, line.line) for line in found.lines] == [("numpy", 2), ("pillow", 5), ("", 6)]
    assert found.text == "numpy==2.3.5   --hash=sha256:00\nPillow>=11\n--pre\n"


def test_what_the_base_brings_is_left_out_however_it_is_spelled(tmp_path):
    found = read(tmp_path, "VLLM[audio]==0.26.0\nvllm-plugin\n", provided="vllm")
    assert [line.name for line in found.lines] == ["vllm-plugin"]
    assert found.left_out == ("VLLM[audio]==0.26.0",)


def test_files_of_the_folder_come_along(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more/extra.txt").write_text("-c limits.txt\nrich\n")
    (tmp_path / "more/limits.txt").write_text("rich<16\n")
    (tmp_path / "own-1.0-py3-none-any.whl").write_bytes(b"")
    found = read(tmp_path, "-r more/extra.txt\n./own-1.0-py3-none-any.whl\n")
    assert [file.name for file in found.files] == [
        "more/extra.txt",
        "more/limits.txt",
        "own-1.0-py3-none-any.whl",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-e .\n", "requirements.txt:1 installs from a folder"),
        ("numpy\n./lib\n", "requirements.txt:2 installs from a folder"),
        ("--find-links=/srv/wheels\n", "about a folder of this machine"),
        ("-r missing.txt\n", "no file of the model folder"),
        ("-r ../outside.txt\n", "no file of the model folder"),
        ("--extra-index-url https://ada:secret@pypi.example.com/simple\n", "has a password"),
        ("own @ git+https://secret@github.com/org/own\n", "has a password or a token"),
        ("--index-url https://secret:@pypi.example.com/simple\n", "has a password or a token"),
    ],
)
def test_lines_that_cannot_work_in_an_image(tmp_path, text, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "outside.txt").write_text("")
    (tmp_path / "folder/lib").mkdir()
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path / "folder", text)
    assert "secret" not in str(caught.value)


def test_a_password_that_is_a_variable_is_none(tmp_path):
    line = "--extra-index-url https://ada:${TOKEN}@pypi.example.com/simple"
    assert read(tmp_path, f"{line}\n").text == f"{line}\n"


@pytest.mark.parametrize(
    "line",
    [
        "own @ git+ssh://git@github.com/org/own",
        "own @ git+https://${TOKEN}@github.com/org/own",
        "own @ https://files.example.com/own@1.0.whl",
    ],
)
def test_a_user_of_ssh_a_variable_and_a_version_are_no_token(tmp_path, line):
    assert read(tmp_path, f"{line}\n").text == f"{line}\n"
