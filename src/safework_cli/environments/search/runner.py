"""Search episodes, many at a time: the model acts, the index answers, until it gives an answer or reaches a limit.

The same runner serves reinforcement learning, evaluation and inference. Sampled token ids are kept across turns and never
re-encoded; the text of the environment is tokenized once, between them, and marked in ``mask``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safework_cli.data.row import Message
from safework_cli.data.text_safety import disarmed
from safework_cli.engines.protocol import Completion, Sampling, TokenEngine, derived_seed
from safework_cli.environments.search.grammar import (
    Action,
    Malformed,
    document_observation,
    episode_prompt,
    parse_action,
    results_observation,
)
from safework_cli.environments.search.index import SearchIndex
from safework_cli.models.chat_template import encode_prompt, observation_ids
from safework_cli.models.thoughts import control_tokens
from safework_cli.models.vision import Vision


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """Limits of an episode.

    Attributes:
        turns: assistant turns at most.
        results: search results shown.
        turn_tokens: sampled tokens of one turn at most.
        total_tokens: tokens after the prompt at most, retrieved text included.
    """

    turns: int = 4
    results: int = 3
    turn_tokens: int = 96
    total_tokens: int = 768


@dataclass(slots=True)
class Transcript:
    """A finished episode.

    Attributes:
        prompt_ids: what the model was asked.
        token_ids, mask, logprobs: everything after it; mask is 1 on sampled tokens, logprobs are 0.0 where mask is 0. (T,) each.
        messages: the same as text, for people.
        answer, confidence: of the final action; None where the episode ended without one.
        ending: "answered", "turns", "length".
        searches, reads, malformed: how often.
        vision: what the prompt's images were encoded to; None where it has none.
    """

    prompt_ids: list[int]
    messages: list[Message]
    token_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    answer: str | None = None
    confidence: int | None = None
    ending: str = ""
    searches: int = 0
    reads: int = 0
    malformed: int = 0
    vision: Vision | None = None
    _shown: list[str] = field(default_factory=list)
    """Ids of the passages of the last search, in the order shown."""

    @property
    def well_formed(self) -> bool:
        """An answer with its confidence, and no malformed action on the way."""
        return self.ending == "answered" and self.malformed == 0


def run_episodes(
    engine: TokenEngine,
    index: SearchIndex,
    prompts: Sequence[Sequence[Message]],
    limits: EpisodeLimits,
    sampling: Sampling,
    *,
    seeds: Sequence[int] | None = None,
    encoded: Sequence[tuple[list[int], Vision | None]] | None = None,
) -> list[Transcript]:
    """Runs one episode for each prompt, all of them turn by turn together.

    Args:
        prompts: the questions; one without the search instruction gets it.
        sampling: temperature, nucleus and seed; ``max_tokens`` is replaced by what the limits leave.
        seeds: one for each episode, in place of what the engine derives from ``sampling.seed``, so that an episode does not depend on the
            others of the call.
        encoded: the prompts with the search instruction as token ids, with their images; without it they are encoded here, as text.
    """
    asked = [episode_prompt(prompt) for prompt in prompts]
    encoded = encoded or [encode_prompt(engine.tokenizer, prompt) for prompt in asked]
    transcripts = [Transcript(ids, messages, vision=vision) for (ids, vision), messages in zip(encoded, asked, strict=True)]
    active = list(transcripts)
    seed_of = None if seeds is None else {id(t): seed for t, seed in zip(transcripts, seeds, strict=True)}
    for turn in range(limits.turns):
        if not active:
            break
        # an episode that another turn would not fit into has ended
        budget = min(limits.turn_tokens, limits.total_tokens)
        drawn_by: Any = {} if seed_of is None else {"seeds": [[derived_seed(seed_of[id(t)], turn)] for t in active]}
        if any(t.vision for t in active):
            drawn_by["visions"] = [t.vision for t in active]
        drawn = engine.generate_ids(
            [t.prompt_ids + t.token_ids for t in active],
            replace(sampling, max_tokens=budget, seed=sampling.seed * 31 + turn),
            **drawn_by,
        )
        for transcript, group in zip(active, drawn, strict=True):
            _act(transcript, group[0], engine, index, limits, last=turn == limits.turns - 1)
        active = [t for t in active if not t.ending]
    return transcripts


def _act(
    transcript: Transcript, completion: Completion, engine: TokenEngine, index: SearchIndex, limits: EpisodeLimits, *, last: bool
) -> None:
    """Takes one sampled turn in and, if the episode continues, the environment's reply to it."""
    transcript.token_ids += completion.token_ids
    transcript.mask += [1] * len(completion.token_ids)
    transcript.logprobs += completion.logprobs
    transcript.messages.append(Message(role="assistant", content=completion.text))
    action = parse_action(completion.text)
    if isinstance(action, Action) and action.kind == "answer":
        transcript.answer, transcript.confidence, transcript.ending = action.answer, action.confidence, "answered"
        return
    observation = _observe(transcript, action, index, limits, control_tokens(engine.tokenizer))
    if last:
        transcript.ending = "turns"
        return
    transcript.messages.append(Message(role="user", content=observation))
    stopped = bool(completion.token_ids) and completion.token_ids[-1] in engine.stop_ids
    ids = observation_ids(engine.tokenizer, transcript.messages, engine.stop_ids, stopped)
    if len(transcript.token_ids) + len(ids) + limits.turn_tokens > limits.total_tokens:
        transcript.ending = "length"
        transcript.messages.pop()
        return
    transcript.token_ids += ids
    transcript.mask += [0] * len(ids)
    transcript.logprobs += [0.0] * len(ids)


def _observe(transcript: Transcript, action: Action | Malformed, index: SearchIndex, limits: EpisodeLimits, special: Sequence[str]) -> str:
    """The environment's answer to an action; to a malformed one, an error, whose tags are as the model should write them.

    Args:
        special: the tokenizer's special tokens, which retrieved text must not hold.
    """
    if isinstance(action, Malformed):
        transcript.malformed += 1
        return f"Error: {action.reason}"
    if action.kind == "search":
        transcript.searches += 1
        hits = index.search(action.query, limits.results)
        transcript._shown = [hit.id for hit in hits]
        return disarmed(results_observation([(hit.title, hit.abstract) for hit in hits]), special)
    if not 1 <= action.number <= len(transcript._shown):
        transcript.malformed += 1
        shown = len(transcript._shown)
        return f"Error: there is no result {action.number}; " + (f"the last search showed {shown}" if shown else "search first")
    transcript.reads += 1
    passage = index.read(transcript._shown[action.number - 1])
    return disarmed(document_observation(passage.title, passage.text), special)
