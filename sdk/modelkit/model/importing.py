"""Import an author's model.py and find its Model; whatever is wrong becomes a Problem with a line."""

import importlib.util
import inspect
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from modelkit.errors import ConfigError, Problem
from modelkit.model.base import METHOD_ATTRIBUTE, MarkError, Model
from modelkit.model.signature import Signature, SignatureError, method_names, read_signature
from modelkit.model.source import SourceFile

__all__ = ["check_model", "find_model_file", "import_checked_class", "import_model_class", "read_signatures"]

# What the server calls without arguments.
_CALLED_BARE = ("__init__", "load", "close")
_RESERVED = {"load", "close", "config", "context", "model_dir", "checkpoint_dir", "request", "report_usage"}


def find_model_file(model_dir: Path) -> Path | None:
    """Return `model.py`, or `1/model.py` as Clarifai lays it out; None where neither is there."""
    candidates = (model_dir / "model.py", model_dir / "1" / "model.py")
    return next((path for path in candidates if path.is_file()), None)


def import_model_class(model_dir: Path) -> type[Model]:
    """Import the folder's model.py and return its one subclass of Model.

    The folder of the file is put on `sys.path`, so that model.py can import its neighbours. Raises ConfigError for a
    missing file, broken Python, an import that fails, or no class or several to choose from.
    """
    source = _read(model_dir)
    return _find_class(source, _import(source))


def read_signatures(model_class: type[Model]) -> Mapping[str, Signature]:
    """Read the signatures of all methods, by name. Raises SignatureError at the first that cannot be served."""
    return {name: read_signature(model_class, name) for name in method_names(model_class)}


def check_model(model_dir: Path) -> list[Problem]:
    """Return every problem of the folder's model.py; it is imported, but nothing is loaded."""
    try:
        import_checked_class(model_dir)
    except ConfigError as error:
        return list(error.problems)
    return []


def import_checked_class(model_dir: Path) -> type[Model]:
    """As `import_model_class`; ConfigError also has every problem of the methods' signatures."""
    source = _read(model_dir)
    model_class = _find_class(source, _import(source))
    problems = _check_bare_calls(source, model_class) + _check_methods(source, model_class)
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0)))
    return model_class


def _check_bare_calls(source: SourceFile, model_class: type[Model]) -> list[Problem]:
    """Report arguments that nobody would give: `load` and its like are called with nothing but self."""
    problems = []
    for name in _CALLED_BARE:
        function = inspect.getattr_static(model_class, name)
        if not inspect.isfunction(function) or hasattr(function, METHOD_ATTRIBUTE):
            continue
        needed = _needed_beyond_self(function)
        if needed:
            message = f"'{name}' takes '{needed}', and the server calls it with nothing but self"
            cure = f"write def {name}(self); what depends on the folder is in self.config and self.model_dir in load"
            place = source.find_part(model_class.__name__, function, needed)
            problems.append(source.problem(message, cure, place))
    return problems


def _needed_beyond_self(function: Any) -> str:
    """Return the first argument after self that has no default, "" where there is none."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind not in variable
    ]
    return needed[1] if len(needed) > 1 else ""


def _check_methods(source: SourceFile, model_class: type[Model]) -> list[Problem]:
    names = method_names(model_class)
    if not names:
        message = f"class {model_class.__name__} has no method marked @method"
        cure = "put @method over the functions that callers may call (from modelkit import method)"
        return [source.problem(message, cure, source.find_part(model_class.__name__, None, ""))]
    found = (_check_method(source, model_class, name) for name in names)
    return [problem for problem in found if problem is not None]


def _check_method(source: SourceFile, model_class: type[Model], name: str) -> Problem | None:
    function = getattr(model_class, name)
    if name in _RESERVED or name.startswith("_"):
        place = source.find_part(model_class.__name__, function, "")
        return source.problem(f"'{name}' cannot be a method's name", "choose another name", place)
    try:
        read_signature(model_class, name)
    except SignatureError as error:
        place = source.find_part(model_class.__name__, function, error.argument)
        return source.problem(str(error), error.cure, place)
    return None


def _read(model_dir: Path) -> SourceFile:
    path = find_model_file(model_dir)
    if path is None:
        cure = f"write one with a subclass of modelkit.Model; `modelkit init {model_dir.resolve().name}` shows how"
        raise ConfigError([Problem("the model folder has no model.py", cure, model_dir / "model.py")])
    try:
        text = path.read_text(encoding="utf-8-sig")  # Python skips a byte order mark too
    except UnicodeDecodeError as error:
        problem = Problem(
            f"the file is not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8", path
        )
        raise ConfigError([problem]) from error
    except OSError as error:
        problem = Problem(f"the file cannot be read: {error.strerror}", "check its permissions", path)
        raise ConfigError([problem]) from error
    return SourceFile(path, text)


def _import(source: SourceFile) -> ModuleType:
    path = source.path.resolve()
    # A name of its own per folder: two models in one process (tests do that) must not share a module.
    name = "modelkit_model_" + "".join(char if char.isalnum() else "_" for char in str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError([source.problem("the file cannot be imported", "name it model.py")])
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module  # pydantic and pickle look classes up by their module's name
    with _noting_interrupts() as interrupts:
        try:
            spec.loader.exec_module(module)
        except BaseException as error:  # author's code may raise anything
            sys.modules.pop(name, None)
            if interrupts:
                raise
            if isinstance(error, SyntaxError):
                raise ConfigError([_syntax_problem(source, error)]) from error
            raise ConfigError([_import_problem(source, error)]) from error
    return module


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Yield a list that a Ctrl-C fills: a KeyboardInterrupt that the file itself raises does not."""
    pressed: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield pressed
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, handler)


def _syntax_problem(source: SourceFile, error: SyntaxError) -> Problem:
    if error.filename and Path(error.filename).resolve() != source.path.resolve():
        path = Path(error.filename)
        return Problem(f"broken Python: {error.msg}", "mend the syntax", path, error.lineno, error.offset)
    end = error.end_offset if error.end_lineno == error.lineno and error.end_offset else None
    return source.problem_at(
        f"broken Python: {error.msg}", "mend the syntax", error.lineno or 1, error.offset, end
    )


def _import_problem(source: SourceFile, error: BaseException) -> Problem:
    line = _line_in(source, error)
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        message = f"model.py needs '{missing}', which is not installed"
        cure = f"{_installation(source)}, or import '{missing}' inside load, where it is used"
    elif isinstance(error, SystemExit):
        message, cure = "model.py ends the process when it is imported", "remove the call to exit"
    elif isinstance(error, MarkError):
        message, cure = str(error), error.cure
    elif isinstance(error, TypeError) and str(error).startswith("method() "):
        message = f"@method is misused: {error}"
        cure = "write @method alone above the function: it takes no options"
    elif isinstance(error, KeyboardInterrupt):
        message, cure = "model.py raises KeyboardInterrupt when it is imported", "remove the raise"
    else:
        message = f"importing model.py raised {type(error).__name__}: {error}"
        cure = "keep work that can fail inside load"
    return source.problem_at(message, cure, line)


def _installation(source: SourceFile) -> str:
    """Say how to install what model.py needs: from requirements.txt where the folder has one."""
    folder = source.path.parent
    folders = (folder, folder.parent) if folder.name == "1" else (folder,)
    for file in (candidate / "requirements.txt" for candidate in folders):
        if file.is_file():
            return f"pip install -r {shlex.quote(str(file))}"
    return f"install it and name it in {folders[-1] / 'requirements.txt'}"


def _line_in(source: SourceFile, error: BaseException) -> int:
    """Return the last line of model.py that the error came through."""
    path = str(source.path.resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] or 1 if lines else 1


def _find_class(source: SourceFile, module: ModuleType) -> type[Model]:
    own = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Model) and value.__module__ == module.__name__
    ]
    leaves = [cls for cls in dict.fromkeys(own) if not any(cls in other.__mro__[1:] for other in own)]
    if len(leaves) == 1:
        return leaves[0]
    if not leaves:
        cure = "define one: class MyModel(Model): ... (from modelkit import Model, method)"
        raise ConfigError([source.problem("model.py defines no subclass of modelkit.Model", cure)])
    names = ", ".join(cls.__name__ for cls in leaves)
    message = f"model.py defines {len(leaves)} models, {names}; a folder has one"
    cure = "keep one class and move the others into folders of their own"
    raise ConfigError([source.problem(message, cure, source.find_part(leaves[1].__name__, None, ""))])
