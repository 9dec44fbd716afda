"""An evaluation in shares: several commands ask for a share of the replies each, and one judges them and sums them up.

A share is of whole batches, as one command would make them: the replies are those of one command to the last bit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safework_cli.core.artifacts.manifest import write_durably
from safework_cli.core.config import result_settings
from safework_cli.core.errors import InputError, SafeworkError
from safework_cli.core.journal import read_journal, write_line
from safework_eval.config import EvalConfig, share_of
from safework_eval.samples import Key, RecordedReply

if TYPE_CHECKING:
    from safework_cli.core.artifacts import Artifact
    from safework_cli.core.stage import Inputs
    from safework_eval.selection import PlannedSuite

SLOT = "shards"
ABOUT = "shard.json"
REPLIES = ("replies.jsonl", "replies-against.jsonl")
"""Of the evaluated model, and of the base where it is evaluated in the same run."""


@dataclass(frozen=True, slots=True)
class Replies:
    """What one model replied.

    Attributes:
        engine: its name.
        template_hash: of the chat template.
        started: when the first one was asked for.
        replies: of the rows of all suites, or of a share of them.
    """

    engine: str
    template_hash: str | None
    started: str
    replies: dict[Key, RecordedReply]


def problems(config: EvalConfig, inputs: Inputs, version: int) -> list[SafeworkError]:
    """Why these shares are not all of this very evaluation, each once; empty without shares.

    Args:
        version: of the stage.
    """
    given = inputs.many(SLOT)
    if not given:
        return []
    refusals: list[SafeworkError] = []
    shares: dict[str, tuple[int, int]] = {}
    for key, artifact in given.items():
        settings = artifact.manifest.config
        if artifact.manifest.stage != "eval" or not settings.get("shard"):
            why = f"{artifact.manifest.stage} made it; a share is made by safework eval shard=1/{len(given)}"
            refusals.append(InputError(f"{SLOT}.{key}={artifact.ref} is not a share of an evaluation", why))
            continue
        if changed := _changed(config, inputs, artifact, version):
            refusals.append(
                InputError(
                    f"{SLOT}.{key}={artifact.ref} is a share of another evaluation: {', '.join(changed)} differ",
                    "its replies would be counted as this evaluation's",
                    "make it again with the settings and inputs of this command",
                )
            )
        shares[key] = share_of(settings["shard"])
    if refusals:
        return refusals
    counts = Counter(count for _, count in shares.values())
    if len(counts) > 1:
        return [InputError(f"the shares are of different numbers: {', '.join(f'{n} of {count}' for n, count in sorted(shares.values()))}")]
    (count,) = counts
    numbers = Counter(number for number, _ in shares.values())
    if doubled := sorted(number for number, times in numbers.items() if times > 1):
        keys = [key for key, (number, _) in shares.items() if number == doubled[0]]
        what = f"share {doubled[0]} of {count} is given {len(keys)} times ({', '.join(f'{SLOT}.{key}' for key in keys)})"
        refusals.append(InputError(what, "its replies would count more than once", "give each share once"))
    if missing := sorted(set(range(1, count + 1)) - set(numbers)):
        named = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
        what = f"{len(missing)} of the {count} shares are missing: {named}"
        refusals.append(InputError(what, "an evaluation of the others would be one of other rows", f"shard={missing[0]}/{count} makes one"))
    return refusals


def _changed(config: EvalConfig, inputs: Inputs, shard: Artifact, version: int) -> list[str]:
    """The settings and inputs in which a share was made otherwise."""
    changed = [name for name, value in sorted(result_settings(config).items()) if _differs(value, shard.manifest.config.get(name))]
    digests = {key: artifact.digest for key, artifact in inputs.flat().items() if not key.startswith(f"{SLOT}.")}
    others = {key: entry.digest for key, entry in shard.manifest.inputs.items()}
    changed += sorted(key for key in digests.keys() | others.keys() if digests.get(key) != others.get(key))
    return changed + (["the stage's version"] if shard.manifest.stage_version != version else [])


def _differs(mine: Any, theirs: Any) -> bool:
    """Whether a setting differs from a recorded one, which has those as well that cannot change a result."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return any(_differs(value, theirs.get(name)) for name, value in mine.items())
    return bool(mine != theirs)


def write_shard(folder: Path, suites: Sequence[PlannedSuite], sides: Sequence[Replies]) -> None:
    """Writes the payload of a share."""
    for name, side in zip(REPLIES, sides, strict=False):
        with (folder / name).open("w", encoding="utf-8") as out:
            for (suite, row), reply in side.replies.items():
                write_line(out, {"suite": suite, "id": row, **asdict(reply)})
    about: dict[str, Any] = {"suites": {suite.name: suite.digest for suite in suites}}
    about["sides"] = [{"engine": side.engine, "template_hash": side.template_hash, "started": side.started} for side in sides]
    write_durably(folder / ABOUT, json.dumps(about, indent=1).encode())


def merged(shards: Mapping[str, Artifact], suites: Sequence[PlannedSuite]) -> list[Replies]:
    """The replies of all shares, for each side.

    Raises:
        InputError: the shares were made of other rows or by different engines, or do not hold each reply once.
    """
    abouts = {key: json.loads((shard.path / ABOUT).read_bytes()) for key, shard in shards.items()}
    digests = {suite.name: suite.digest for suite in suites}
    first = next(iter(abouts))
    for key, about in abouts.items():
        if about["suites"] != digests:
            other = next(name for name in digests if about["suites"].get(name) != digests[name])
            why = "a public set was downloaded again, or is read from another folder"
            raise InputError(f"{SLOT}.{key}={shards[key].ref} asked other rows of the suite '{other}'", why, "make the share again")
        for mine, theirs in zip(abouts[first]["sides"], about["sides"], strict=True):
            if (mine["engine"], mine["template_hash"]) != (theirs["engine"], theirs["template_hash"]):
                what = f"{SLOT}.{first} was answered by {mine['engine']}, and {SLOT}.{key} by {theirs['engine']}"
                raise InputError(
                    what, "the replies of one evaluation come from one engine", "make the shares on machines of one kind, or set dtype=…"
                )
    wanted = [(suite.name, row.id) for suite in suites for row in suite.rows]
    return [_merged_side(number, shards, abouts, wanted) for number in range(len(abouts[first]["sides"]))]


def _merged_side(number: int, shards: Mapping[str, Artifact], abouts: Mapping[str, Any], wanted: Sequence[Key]) -> Replies:
    replies: dict[Key, RecordedReply] = {}
    doubled = 0
    for shard in shards.values():
        for record in read_journal(shard.path / REPLIES[number]):
            key = (record.pop("suite"), record.pop("id"))
            doubled += key in replies
            replies[key] = RecordedReply(**record)
    missing = [key for key in wanted if key not in replies]
    if doubled or missing or len(replies) > len(wanted):
        raise InputError(
            f"the shares hold {len(replies)} of {len(wanted)} replies, {doubled} of them more than once",
            f"the first one that is missing is {missing[0][1]} of the suite '{missing[0][0]}'" if missing else "",
            "report this; safework eval without shards asks for all of them",
        )
    sides = [about["sides"][number] for about in abouts.values()]
    return Replies(sides[0]["engine"], sides[0]["template_hash"], min(side["started"] for side in sides), replies)
