"""A torchvision that does not fit the installed torch is hidden before transformers is imported. Imports no torch itself.

transformers asks only whether torchvision is installed, and then imports it: one built for another torch (a CUDA build next to a CPU
torch; another version) raises on import and breaks every model, text models too. Images need it not: see
``safework_cli.models.processors``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

PACKAGE, PROBED = "torchvision", "torchvision.transforms.v2"


class _BeforeTransformers(MetaPathFinder):
    """Looks at torchvision when transformers is imported; finds nothing itself."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname == "transformers":
            sys.meta_path.remove(self)
            hide_if_unfit()
        return None


def watch() -> None:
    """From now on, the first import of transformers is preceded by ``hide_if_unfit``. Costs nothing where it is never imported."""
    if "transformers" not in sys.modules and not any(isinstance(finder, _BeforeTransformers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTransformers())


def hide_if_unfit() -> str:
    """Makes an installed torchvision that cannot be imported look as if it were not installed, in this process. Returns why it was, or
    an empty text."""
    if find_spec(PACKAGE) is None:  # also where it is hidden already
        return ""
    try:
        import_module(PROBED)
    except Exception as error:  # RuntimeError of a missing operator, OSError of a missing library, ImportError, AttributeError, …
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]
        sys.modules[PACKAGE] = None  # type: ignore[assignment]  # so find_spec finds none, and an import raises ModuleNotFoundError
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""
