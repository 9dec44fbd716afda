"""Search suites: questions that the model answers in episodes over an index. Light: settings are read while planning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import Field

from safework_cli.core.settings import Settings
from safework_cli.data.row import Row
from safework_cli.environments.search.grammar import episode_prompt
from safework_eval.requests import build_request
from safework_eval.samples import Archive, Episode, RecordedReply

if TYPE_CHECKING:
    from safework_cli.engines.protocol import TokenEngine
    from safework_cli.environments.search.index import SearchIndex
    from safework_cli.environments.search.runner import Transcript
    from safework_eval.selection import PlannedSuite

RIGHT = 0.5
"""Score from which an answer counts as right: `correct_threshold` of the search stage."""


class EpisodeSettings(Settings):
    """How search suites are answered; the names and defaults are those of ``safework rl search``."""

    turns: int = Field(4, ge=1, le=1000)
    """Assistant turns of an episode at most."""
    results: int = Field(3, ge=1, le=1000)
    """Search results shown."""
    turn_tokens: int = Field(96, ge=8, le=10**6)
    """Sampled tokens of one turn at most."""
    total_tokens: int = Field(768, ge=8, le=10**6)
    """Tokens of an episode after the question at most, retrieved text included."""
    certain: int = Field(5, ge=1, le=10)
    """Confidence (0–10) from which an answer counts as certain."""


def play(
    engine: TokenEngine,
    index: SearchIndex,
    suite: str,
    rows: Sequence[Row],
    settings: EpisodeSettings,
    sampling: Any,
    archive: Archive,
) -> int:
    """Runs the episodes of some of a suite's rows that the archive does not hold, together, and returns how many they are.

    Args:
        sampling: temperature, nucleus and seed; each episode draws by a seed of its own.
    """
    from dataclasses import replace

    from safework_cli.engines.protocol import derived_seed
    from safework_cli.environments.search.runner import EpisodeLimits, run_episodes
    from safework_cli.models.chat_template import encode_prompt

    limits = EpisodeLimits(settings.turns, settings.results, settings.turn_tokens, settings.total_tokens)
    whole = replace(sampling, max_tokens=settings.total_tokens)
    missing = [row for row in rows if (suite, row.id) not in archive.replies]
    requests = {
        row.id: build_request(engine, episode_prompt(row.prompt), whole, (row.id, 1), row.images, "episode.total_tokens") for row in missing
    }
    for key, request in requests.items():
        if request.problem:
            archive.add((suite, key), request.refusal())
    fitting = [row for row in missing if requests[row.id].problem is None]
    prompts = [row.prompt for row in fitting]
    seeds = [derived_seed(sampling.seed, row.id) for row in fitting]
    encoded = [encode_prompt(engine.tokenizer, episode_prompt(row.prompt), row.images, row.images and engine.processor) for row in fitting]
    played = run_episodes(engine, index, prompts, limits, sampling, seeds=seeds, encoded=encoded)
    for row, transcript in zip(fitting, played, strict=True):
        archive.add((suite, row.id), reply_of_episode(transcript))
    return len(missing)


def chunks_of(suite: PlannedSuite, size: int) -> list[Sequence[Row]]:
    return [suite.rows[start : start + size] for start in range(0, len(suite.rows), size)]


def reply_of_episode(transcript: Transcript) -> RecordedReply:
    """An episode as a reply: the text is the last turn, what is judged is the final action's answer."""
    turns = [message["content"] for message in transcript.messages if message["role"] == "assistant"]
    ending = {"answered": "stop", "length": "length"}.get(transcript.ending, transcript.ending)
    return RecordedReply(
        text=turns[-1] if turns else "",
        tokens=sum(transcript.mask),
        prompt_tokens=len(transcript.prompt_ids),
        finish_reason=ending,
        episode=asdict(
            Episode(
                answer=transcript.answer,
                confidence=transcript.confidence,
                well_formed=transcript.well_formed,
                searches=transcript.searches,
                reads=transcript.reads,
                malformed=transcript.malformed,
                messages=[{"role": m["role"], "content": m["content"]} for m in transcript.messages],
            )
        ),
    )
