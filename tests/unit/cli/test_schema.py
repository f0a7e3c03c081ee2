"""`modelkit schema` prints or writes the JSON Schema."""

import json

from modelkit.cli.app import main
from modelkit.config import json_schema


def test_it_is_printed(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_it_is_written(tmp_path, capsys):
    assert main(["schema", "--output", str(tmp_path / "schema.json")]) == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == json_schema()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"✓ wrote {tmp_path / 'schema.json'}\n"


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    assert main(["schema", "-o", str(tmp_path / "nowhere" / "schema.json")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
