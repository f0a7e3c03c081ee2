"""The templates that come with modelkit: inside the installed package, or in a source tree beside it."""

from pathlib import Path

from modelkit.errors import ModelkitError

__all__ = ["template_names", "templates_dir"]

_PACKAGE = Path(__file__).parent


def templates_dir() -> Path:
    """Return the folder of all templates. Raises ModelkitError where the installation has none."""
    # The wheel carries them as package data; an editable install reads them where they are edited.
    candidates = (_PACKAGE / "_templates", _PACKAGE.parents[1] / "templates")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ModelkitError(
        "this installation of modelkit has no templates",
        cure="install it again: pip install --force-reinstall modelkit-sdk",
    )


def template_names() -> list[str]:
    """Return the names of the templates for model folders; what starts with an underscore is shared by them."""
    return sorted(
        path.name
        for path in templates_dir().iterdir()
        if path.is_dir() and not path.name.startswith(("_", "."))
    )
