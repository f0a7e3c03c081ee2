"""Where things stand in an author's source file, so that a problem can point at the very annotation."""

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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
        return self.text.splitlines()

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
        """Return the class statement of that name at the top level."""
        found = [node for node in self._tree.body if isinstance(node, ast.ClassDef) and node.name == name]
        return found[-1] if found else None

    def find_method(self, class_name: str, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """Return the function statement of a method; None where the class inherits it from elsewhere."""
        owner = self.find_class(class_name)
        found = [
            node
            for node in (owner.body if owner else [])
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name
        ]
        return found[-1] if found else None

    def find_part(self, class_name: str, method: str, argument: str) -> ast.AST | None:
        """Return the node of a method's argument, of its result for "return", or of the method for ""."""
        node = self.find_method(class_name, method)
        if node is None:
            return self.find_class(class_name)
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


def _name_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
    """Return a node that covers the function's name only, not its body."""
    keyword = "async def " if isinstance(node, ast.AsyncFunctionDef) else "def "
    start = node.col_offset + len(keyword)
    place = ast.Pass(lineno=node.lineno, col_offset=start)
    place.end_lineno, place.end_col_offset = node.lineno, start + len(node.name.encode())
    return place
