"""A torchvision that does not fit the installed torch is hidden before transformers is imported. Imports no torch itself.

transformers asks only whether torchvision is installed, and then imports it. One that was built for another torch (a CUDA build next to a
CPU torch, another version) raises on import and would break every model, text models too. Images do not need it: see
``safework_cli.models.processors``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
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
            hidden_because()
        return None


def watch() -> None:
    """From now on, the first import of transformers is preceded by ``hidden_because``. Costs nothing where it is never imported."""
    if "transformers" not in sys.modules and not any(isinstance(finder, _BeforeTransformers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTransformers())


@cache
def hidden_because() -> str:
    """Makes an installed torchvision that cannot be imported look as if it were not installed, in this process. Returns why it cannot be
    imported; an empty text where it can, or is not installed."""
    if find_spec(PACKAGE) is None:
        return ""
    try:
        import_module(PROBED)
    except Exception as error:  # RuntimeError of a missing operator, OSError of a missing library, ImportError, AttributeError, …
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]
        sys.modules[PACKAGE] = None  # type: ignore[assignment]  # find_spec then finds nothing, and an import raises ModuleNotFoundError
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""
