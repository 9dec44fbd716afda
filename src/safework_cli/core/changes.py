"""Inputs that were deleted or changed while a run was made of them."""

from __future__ import annotations

from safework_cli.core.artifacts.external import changed_files
from safework_cli.core.artifacts.manifest import MANIFEST
from safework_cli.core.errors import InputError
from safework_cli.core.record import Prepared


def refuse_if_deleted(prepared: Prepared) -> None:
    """Raises InputError where an input was deleted."""
    for artifact in prepared.inputs.flat().values():
        if not (artifact.path if artifact.external else artifact.path / MANIFEST).exists():
            raise InputError(
                f"{artifact.ref} was deleted in the meantime",
                "a gc that started before this run did not know that the run needs it",
                "run the stage that made it again",
            )


def changed_inputs(prepared: Prepared) -> list[str]:
    """The files of inputs outside the store that are not what they were when the fingerprint was made."""
    inputs = prepared.inputs.flat()
    return [f"{key}={one.ref} ({name})" for key, one in inputs.items() for name in changed_files(one, prepared.states.get(key, {}))]


def refuse_if_changed(prepared: Prepared) -> None:
    """Raises InputError where a file that the settings name, or one of an input outside the store, changed after the fingerprint was made:
    what was made of the new content would be found later by requests for the old."""
    now = prepared.stage.external_digests(prepared.resolved.config)
    changed = sorted(key for key in prepared.external.keys() | now.keys() if prepared.external.get(key) != now.get(key))
    if changed := changed + changed_inputs(prepared):
        raise InputError(
            f"what was read changed during the run: {', '.join(changed)}",
            "the result may be made of the old content, the new one or a part of each, and is not kept",
            "run the same command again once nothing writes to it",
        )
