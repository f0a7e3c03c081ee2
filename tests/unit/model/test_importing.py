"""Importing a model.py: each thing that can be wrong is a Problem with its place and cure, never a traceback."""

import signal
import sys

import pytest

from modelkit.errors import ConfigError
from modelkit.model import check_model, import_model_class

HEAD = "from modelkit import Field, Model, method\n"
GOOD = HEAD + "class Good(Model):\n    @method\n    def run(self, a: int) -> int: ...\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def problems_of(folder, text):
    if isinstance(text, str):
        text = text.encode()
    (folder / "model.py").write_bytes(text)
    return check_model(folder)


def only_problem(folder, text):
    (problem,) = problems_of(folder, text)
    assert problem.cure
    assert problem.path == folder / "model.py"
    return problem


def pointed_at(problem):
    """The part of the source line under the caret."""
    return problem.source[problem.column - 1 : problem.end_column - 1 if problem.end_column else None]


def method_of(signature, body="..."):
    return f"{HEAD}class A(Model):\n    @method\n    {signature}: {body}\n"


@pytest.mark.parametrize("text", [GOOD, GOOD.replace("\n", "\r\n"), "\ufeff" + GOOD, "# é\n\f" + GOOD])
def test_a_good_file_has_no_problems(folder, text):
    assert problems_of(folder, text) == []


@pytest.mark.parametrize(
    ("signature", "part", "words"),
    [
        ("def run(self, a) -> int", "a", "argument 'a' of method 'run' has no type"),
        ("def run(self, a: int)", "run", "does not say what it returns"),
        ("def run(self, *args: int) -> int", "args: int", "no fixed set of arguments"),
        ("def run(self, a: int, /) -> int", "a: int", "positional-only"),
        ("def run(self, é: str, a: complex) -> int", "a: complex", "values of type complex cannot be sent"),
        ("def run(self) -> complex", "complex", "the result: values of type complex"),
        ("async def run(self)", "run", "does not say what it returns"),
        ("def run(self, a: 'Nope') -> int", "a: 'Nope'", "the name 'Nope'"),
        ("def run(self, a: 'list[') -> int", "a: 'list['", "cannot be read"),
        ("def run(self, a: int = Field(0, ge=1)) -> int", "a: int", "breaks its own rules"),
        ("def run(self, a: str = Field('x', ge=1)) -> int", "a: str", "does not fit the type string"),
        ("def load(self) -> int", "load", "cannot be a method's name"),
        ("def _hidden(self) -> int", "_hidden", "cannot be a method's name"),
    ],
)
@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_a_wrong_signature_is_pointed_at(folder, signature, part, words, future):
    problem = only_problem(folder, future + method_of(signature))
    assert words in problem.message
    assert problem.line == 4 + bool(future)
    assert pointed_at(problem) == part
    assert str(folder) not in problem.message


def test_all_wrong_signatures_are_found_in_one_run(folder):
    text = (
        HEAD
        + "class A(Model):\n    @method\n    def a(self, x) -> int: ...\n    @method\n    def b(self): ...\n"
    )
    assert [problem.line for problem in problems_of(folder, text)] == [4, 6]


def test_wrong_signatures_are_listed_by_line(folder):
    text = (
        HEAD
        + "class A(Model):\n    @method\n    def z(self, x) -> int: ...\n    @method\n    def a(self): ...\n"
    )
    assert [problem.line for problem in problems_of(folder, text)] == [4, 6]


@pytest.mark.parametrize(
    ("definition", "part"),
    [
        ("def __init__(self, foo): ...", "foo"),
        ("def load(self, x: int): ...", "x: int"),
        ("async def load(self, *, x): ...", "x"),
        ("def close(self, a=1, *, b): ...", "b"),
    ],
)
def test_what_the_server_calls_takes_nothing_but_self(folder, definition, part):
    problem = only_problem(folder, GOOD + f"    {definition}\n")
    assert "nothing but self" in problem.message
    assert (problem.line, pointed_at(problem)) == (5, part)


@pytest.mark.parametrize(
    "definition",
    [
        "def __init__(self, foo=1): ...",
        "def load(self, *args, **kwargs): ...",
        "async def close(self): ...",
        "@staticmethod\n    def load(): ...",
    ],
)
def test_arguments_that_need_not_be_given_are_left_alone(folder, definition):
    assert problems_of(folder, GOOD + f"    {definition}\n") == []


def test_a_made_constructor_is_pointed_at_the_class(folder):
    text = HEAD + (
        "import dataclasses\n@dataclasses.dataclass\nclass A(Model):\n    size: int\n"
        "    @method\n    def f(self) -> int: ...\n"
    )
    problem = only_problem(folder, text)
    assert "'__init__' takes 'size'" in problem.message
    assert (problem.line, pointed_at(problem)) == (4, "A")


def test_a_ctrl_c_during_the_import_is_no_problem_of_the_file(folder):
    (folder / "model.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        check_model(folder)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("subfolder", ["", "1"])
def test_a_missing_library_is_installed_from_the_folders_own_list(folder, subfolder):
    place = folder / "my model" / subfolder
    place.mkdir(parents=True)
    (place / "model.py").write_text("import surely_not_installed\n")
    (problem,) = check_model(folder / "my model")
    requirements = folder / "my model" / "requirements.txt"
    assert problem.cure.startswith(f"install it and name it in {requirements}, or import")
    requirements.write_text("surely-not-installed\n")
    (problem,) = check_model(folder / "my model")
    assert problem.cure.startswith(f"pip install -r '{requirements}', or import")


def test_a_module_in_place_of_its_class(folder):
    text = "from __future__ import annotations\nfrom PIL import Image\n" + method_of(
        "def run(self, a: Image) -> int"
    )
    problem = only_problem(folder, text)
    assert problem.message.endswith("'PIL.Image' is a module, not a type")
    assert problem.cure == "annotate with PIL.Image.Image"


def test_a_name_for_type_checkers_only(folder):
    text = (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n" + method_of("def run(self, a: torch.Tensor) -> int")
    )
    problem = only_problem(folder, text)
    assert "'torch'" in problem.message
    assert "TYPE_CHECKING" in problem.cure
    assert pointed_at(problem) == "a: torch.Tensor"


def test_an_inherited_method_is_pointed_at_where_it_stands(folder):
    text = (
        HEAD
        + "if True:\n    class Base(Model):\n        @method\n        def run(self, a) -> int: ...\nclass A(Base): ...\n"
    )
    problem = only_problem(folder, text)
    assert (problem.line, pointed_at(problem)) == (5, "a")


def test_a_method_inherited_from_a_neighbour_is_pointed_at_the_class(folder):
    (folder / "base_of_test.py").write_text(
        HEAD + "class Base(Model):\n    @method\n    def run(self, a) -> int: ...\n"
    )
    problem = only_problem(folder, "from base_of_test import Base\nclass A(Base): ...\n")
    sys.modules.pop("base_of_test")
    assert (problem.line, pointed_at(problem)) == (2, "A")


@pytest.mark.parametrize(
    ("text", "line", "words", "cure"),
    [
        (HEAD, None, "defines no subclass", "class MyModel(Model)"),
        (HEAD + "class A(Model): ...\n", 2, "class A has no method marked @method", "put @method"),
        (GOOD + GOOD.replace("Good", "Other"), 6, "defines 2 models, Good, Other", "keep one"),
        ("x = (\n", 1, "broken Python: '(' was never closed", "mend"),
        (
            "import surely_not_installed.sub\n",
            1,
            "needs 'surely_not_installed'",
            "install it and name it in ",
        ),
        ("x = 1\n1 / 0\n", 2, "raised ZeroDivisionError", "inside load"),
        ("import sys\nsys.exit(0)\n", 2, "ends the process", "remove"),
        ("raise KeyError\n", 1, "raised KeyError", "inside load"),
        (HEAD + "class A(Model):\n    x: Undefined\n    def f(self, a: Nope): ...\n", 3, "NameError", "load"),
        ("x = 1\0\n", 1, "null byte", ""),
        ("x = 1\nraise KeyboardInterrupt\n", 2, "raises KeyboardInterrupt", "remove the raise"),
        ("import asyncio\nraise asyncio.CancelledError\n", 2, "raised CancelledError", "inside load"),
        (HEAD + "@method\nclass A(Model): ...\n", 2, "not a class", "above a 'def'"),
        (
            HEAD + "class A(Model):\n    @method\n    @property\n    def f(self) -> int: ...\n",
            3,
            "@method marks a plain function, not a property",
            "remove @property",
        ),
        (
            HEAD + "class A(Model):\n    @method(name='g')\n    def f(self) -> int: ...\n",
            3,
            "@method is misused",
            "takes no options",
        ),
    ],
)
def test_a_file_that_is_no_model(folder, text, line, words, cure):
    problem = only_problem(folder, text)
    assert words in problem.message
    assert problem.line == line
    assert cure in problem.cure


def test_broken_python_in_a_neighbour_is_shown_in_the_neighbour(folder):
    (folder / "broken_neighbour.py").write_text("ok = 1\ndef f(:\n")
    (folder / "model.py").write_text("import broken_neighbour\n")
    (problem,) = check_model(folder)
    assert (problem.path.name, problem.line) == ("broken_neighbour.py", 2)


def test_a_file_that_is_not_utf8(folder):
    assert "not UTF-8" in only_problem(folder, b"name = '\xff'\n").message


def test_a_folder_without_a_model(folder):
    (problem,) = check_model(folder)
    assert problem.message == "the model folder has no model.py"
    with pytest.raises(ConfigError):
        import_model_class(folder)


def test_a_heavy_library_may_be_missing_when_it_is_imported_in_load(folder):
    text = GOOD + "    def load(self):\n        import surely_not_installed\n"
    assert problems_of(folder, text) == []
    assert import_model_class(folder).__name__ == "Good"
