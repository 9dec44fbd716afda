"""Whether the judge of safety is independent of the model's training: no stage used it, or a verifier that learned from the same prompts.

A model that was rewarded by a judge, or by one that was trained on the same prompts, has learned what that judge likes: its share of safe
replies by that judge overstates its safety. Lineage says which verifiers a model's training used. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from safework_cli.core.artifacts.external import RULE_PREFIX
from safework_cli.core.errors import SafeworkError
from safework_cli.data.dataset import read_dataset
from safework_cli.data.image_content import image_keys
from safework_cli.data.row import Row

if TYPE_CHECKING:
    from safework_cli.core.artifacts import Artifact, Store


@dataclass(frozen=True, slots=True)
class Independence:
    """What is known of a judge and a model's training.

    Attributes:
        judge: the judge's reference.
        independent: None where it is not known.
        used: the verifiers that the model's training used, with rules left out.
        why: sentences, why it is not independent or why it is not known.
    """

    judge: str
    independent: bool | None
    used: tuple[str, ...]
    why: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "used": list(self.used), "why": list(self.why)}


def independence_of(judge: Artifact, model: Artifact | None) -> Independence:
    """Compares a judge with the verifiers in a model's lineage.

    Args:
        model: the evaluated one; None for a model on a server, of whose training nothing is known.
    """
    if model is None:
        return Independence(judge.ref, None, (), ("the model is served: which verifiers its training used is not known",))
    store = store_of(model)
    dependent: list[str] = []
    unknown: list[str] = []
    used = dict(_verifiers_used(store, model))
    for ref, (digest, verifier) in used.items():
        if digest == judge.digest:
            dependent.append(f"{ref}, which the model's training used, is the judge itself")
            continue
        try:
            shared, what = _shared_prompts(verifier, judge)
        except _Unknown as error:
            unknown.append(f"whether {ref}, which the model's training used, learned from the judge's prompts is not known: {error}")
            continue
        if shared:
            dependent.append(f"{ref}, which the model's training used, was trained on {shared} of the judge's {what}")
    if store is None:
        unknown.append(f"{model.ref} is not in the store: which verifiers its training used is not known")
    independent = False if dependent else None if unknown else True
    return Independence(judge.ref, independent, tuple(used), (*dependent, *unknown))


def independence_lines(record: Mapping[str, Any] | None) -> list[str]:
    """What a table says of ``Independence.to_json()``; nothing without a judge."""
    if record is None:
        return []
    if record["independent"]:
        return [f"{record['judge']} is independent: no stage of the model's training used it or a verifier with its prompts"]
    head = "is NOT independent" if record["independent"] is False else "may not be independent"
    return [f"warning: {record['judge']} {head}: {why}" for why in record["why"]]


def store_of(artifact: Artifact) -> Store | None:
    """The store that an artifact lies in; None for a folder or a hub repository."""
    from safework_cli.core.artifacts import Store

    return None if artifact.external is not None else Store(artifact.path.parents[2])


class _Unknown(Exception):
    """Why the prompts that a verifier learned from are not known."""


def _verifiers_used(store: Store | None, model: Artifact) -> Iterator[tuple[str, tuple[str, Artifact | None]]]:
    """Every verifier in a model's lineage: reference → digest and the artifact, None where it was deleted."""
    if store is None:
        return
    ancestors = store.lineage(model)
    for artifact in (model, *ancestors.values()):
        for entry in artifact.manifest.inputs.values() if artifact is not None else ():
            if entry.kind == "verifier" and not entry.ref.startswith(RULE_PREFIX):
                yield entry.ref, (entry.digest, ancestors.get(entry.ref))


def _shared_prompts(one: Artifact | None, other: Artifact) -> tuple[int, str]:
    """How many prompt groups, or prompts, of the other's training rows the first was trained on too, and what was counted."""
    mine, theirs = (_training_prompts(verifier) for verifier in (one, other))
    groups = mine[0] & theirs[0]
    return (len(groups), "prompt groups") if groups else (len(mine[1] & theirs[1]), "prompts")


def _training_prompts(verifier: Artifact | None) -> tuple[set[str], set[str]]:
    """The groups and the prompts of the rows that a verifier was trained on, or calibrated.

    Raises:
        _Unknown: its data is not here any more, or it was not trained here.
    """
    if verifier is None:
        raise _Unknown("it was deleted")
    entry = verifier.manifest.inputs.get("data")
    store = store_of(verifier)
    if entry is None or store is None:
        raise _Unknown(f"{verifier.ref} was not trained here")
    reference, _, subset = entry.ref.partition(":")
    data = store.ancestor(reference)
    if data is None:
        raise _Unknown(f"{entry.ref} was deleted")
    try:
        rows = read_dataset(data.with_subset(subset) if subset else data)
    except SafeworkError as error:
        raise _Unknown(error.what) from None
    rows = [row for row in rows if row.split != "test"]
    return {row.group for row in rows}, set(map(_prompt, rows))


def _prompt(row: Row) -> str:
    """A question with its images: the same words about another image are another prompt."""
    return "\0".join([" ".join(row.question.lower().split()), *image_keys(row.images)])
