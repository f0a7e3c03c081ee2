import pytest

from modelkit.engines.flags import choice, flag, json_flag, pairs, refuse, render_args, render_options, switch
from modelkit.errors import UsageError


def test_each_maker():
    assert flag("--a")(3) == ["--a", "3"]
    assert switch("--on", "--off")(True) == ["--on"]
    assert switch("--on", "--off")(False) == ["--off"]
    assert switch(None, "--off")(True) == []
    assert json_flag("--j")({"a": [1]}) == ["--j", '{"a":[1]}']
    assert pairs("--p", "--enable")({"x": "/y"}) == ["--enable", "--p", "x=/y"]
    assert pairs("--p", "--enable")({}) == []
    assert choice("--c", {"a": "A", "auto": ""})("a") == ["--c", "A"]
    assert choice("--c", {"a": "A", "auto": ""})("auto") == []


def test_an_option_that_the_engine_does_not_have_is_named():
    with pytest.raises(UsageError, match=r"engine.x with tgi: TGI has none") as error:
        render_options("tgi", {"x": refuse("TGI has none")}, {"x": "v"})
    assert error.value.cure
    with pytest.raises(UsageError, match=r"engine.dtype with tgi: this engine has no 'float32' here"):
        render_options("tgi", {"dtype": choice("--dtype", {"float16": "float16"})}, {"dtype": "float32"})


def test_options_that_are_not_set_are_left_out():
    assert render_options("x", {"a": flag("--a"), "b": flag("--b")}, {"a": None, "b": 2, "c": 3}) == [
        "--b",
        "2",
    ]


def test_args_are_passed_on_as_the_engine_spells_them():
    args = {
        "seed": 7,
        "-O": 3,
        "eager": True,
        "quiet": False,
        "flag": None,
        "names": ["a", "b"],
        "conf": {"k": 1},
    }
    assert render_args(args) == (
        ["--seed", "7", "-O", "3", "--eager", "--flag", "--names", "a", "b", "--conf", '{"k":1}']
    )
