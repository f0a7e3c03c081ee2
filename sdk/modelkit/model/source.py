"""Where things stand in an author's source file, so that a problem can point at the very annotation."""

import ast
import inspect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from modelkit.errors import Problem

__all__ = ["SourceFile"]


@dataclass(frozen=True)
class SourceFile:
    """A Python file and its syntax tree. Methods return Problems placed as exactly as the tree allows."""

    path: Path
    text: str

    @cached_property
    def _tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def _lines(self) -> list[str]:
        # Not splitlines: Python ends a line at a newline only, and not at a form feed.
        return self.text.split("\n")

    def problem(self, message: str, cure: str, node: ast.AST | None = None) -> Problem:
        """Return a problem at a node; without one, a problem of the whole file."""
        if node is None:
            return Problem(message, cure, self.path)
        line: int = getattr(node, "lineno", 1)
        column = self._column(line, getattr(node, "col_offset", 0))
        return self.problem_at(message, cure, line, column, self._end(node))

    def problem_at(
        self, message: str, cure: str, line: int, column: int | None = None, end_column: int | None = None
    ) -> Problem:
        """Return a problem at a line and, where known, columns; all count from 1."""
        source = self._lines[line - 1] if 0 < line <= len(self._lines) else None
        return Problem(message, cure, self.path, line, column, end_column, source)

    def find_class(self, name: str) -> ast.ClassDef | None:
        """Return the last class statement of that name."""
        found = [
            node for node in ast.walk(self._tree) if isinstance(node, ast.ClassDef) and node.name == name
        ]
        return found[-1] if found else None

    def find_function(self, function: Any) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """Return the statement that made a function; None where it stands in another file."""
        code = inspect.unwrap(function).__code__
        if Path(code.co_filename).resolve() != self.path.resolve():
            return None
        for node in ast.walk(self._tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if node.name == code.co_name and first_line == code.co_firstlineno:
                    return node
        return None

    def find_part(self, class_name: str, function: Any, argument: str) -> ast.AST | None:
        """Return the node of a method's argument, of its result for "return", or of its name for "".

        Of a method that stands in another file: the name of the class that inherits it.
        """
        node = self.find_function(function) if inspect.isfunction(function) else None
        if node is None:
            owner = self.find_class(class_name)
            return None if owner is None else _name_of(owner)
        if argument == "return":
            return node.returns or _name_of(node)
        arguments = node.args
        every = [
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ]
        named = next((part for part in every if part is not None and part.arg == argument), None)
        return named or _name_of(node)

    def _column(self, line: int, byte_offset: int) -> int:
        """Turn ast's offset in UTF-8 bytes into a column of characters that counts from 1."""
        text = self._lines[line - 1] if line <= len(self._lines) else ""
        return len(text.encode()[:byte_offset].decode(errors="ignore")) + 1

    def _end(self, node: ast.AST) -> int | None:
        line, end_line = getattr(node, "lineno", None), getattr(node, "end_lineno", None)
        if line is None or line != end_line:
            return None
        return self._column(line, node.end_col_offset)  # type: ignore[attr-defined]


def _name_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> ast.AST:
    """Return a node that covers the name of a function or class only, not its body."""
    keywords = {ast.FunctionDef: "def ", ast.AsyncFunctionDef: "async def ", ast.ClassDef: "class "}
    start = node.col_offset + len(keywords[type(node)])
    place = ast.Pass(lineno=node.lineno, col_offset=start)
    place.end_lineno, place.end_col_offset = node.lineno, start + len(node.name.encode())
    return place
