"""JSON on stdout, for scripts."""

from __future__ import annotations

import json
import math
from typing import Any


def print_json(value: Any) -> None:
    """Prints one line of JSON. NaN and infinities, which JSON does not have and strict readers refuse, are null."""
    print(json.dumps(_finite(value), allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
