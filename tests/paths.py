"""Where things are, for tests of the repository itself."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def load_script(name: str) -> ModuleType:
    """Import scripts/NAME.py as a module."""
    return load_file(ROOT / "scripts" / f"{name}.py")


def load_file(path: Path) -> ModuleType:
    """Import a file that is in no package; its neighbours can be imported while it loads."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        sys.modules.pop("model", None)
    return module
