"""The two ways of searching at inference, over any engine and any verifiers.

How SafeWork-R1 combines its principled value models is not published (`docs/safeladder.md` 7). Guided steps here choose, at each step, the
candidate with the highest weighted verifier score. A value model reads the unfinished reply; another verifier judges the
reasoning so far as if it were the reply.

A reply grows as token ids and is decoded as a whole, because a step may end within a character. Every candidate draws by a seed of its own
(the run's seed, row, step, candidate), so a reply does not depend on the other prompts of its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from safework_cli.core.errors import ConfigError
from safework_cli.data.reply import THINK_CLOSE, THINK_OPEN
from safework_cli.data.row import Row
from safework_cli.engines.prompts import EncodedPrompt, continued, encode_for
from safework_cli.engines.protocol import Completion, Sampling, TokenEngine, derived_seed
from safework_cli.verifiers.contract import Exchange, Verifier, judged
from safework_search.config import weights_problem

BROKEN = "\ufffd"
"""What the bytes of half a character decode to."""


@dataclass(slots=True)
class Candidate:
    """A continuation and its scores.

    Attributes:
        text: what it adds to the reply; a character that a step cuts in two belongs to the step that completes it.
        token_ids: as sampled.
        score: None if one of the guides could not score it.
        logprob: mean log-probability per token.
    """

    text: str
    token_ids: list[int]
    score: float | None
    logprob: float


@dataclass(slots=True)
class Answered:
    """The chosen reply to one prompt.

    Attributes:
        candidates: for best-of-n one list; for guided steps one list per step.
        stopped: the reply ended with a stop token.
        failed_steps: steps at which no candidate could be scored (the most likely one was kept).
        error: why the prompt could not be used.
    """

    reply: str = ""
    token_ids: list[int] = field(default_factory=list)
    candidates: list[list[Candidate]] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    stopped: bool = False
    failed_steps: int = 0
    error: str | None = None


class Guides:
    """Weighted verifiers as one score.

    Args:
        verifiers, weights: by name; the weights need not sum to one. A guide of weight 0 is not used.
        likelihood_weight: of the mean log-probability.

    Raises:
        ConfigError: every weight is 0.
    """

    def __init__(self, verifiers: Mapping[str, Verifier], weights: Mapping[str, float], likelihood_weight: float):
        if problem := weights_problem(list(verifiers), weights, likelihood_weight):
            raise ConfigError(*problem)
        weight_of = {name: weights.get(name, 1.0) for name in verifiers}
        self._guides = [(verifier, weight_of[name]) for name, verifier in verifiers.items() if weight_of[name] > 0]
        self._mass = sum(weight for _, weight in self._guides)
        self._likelihood_weight = likelihood_weight

    def score(
        self, rows: Sequence[Row], texts: Sequence[str], logprobs: Sequence[float], *, partial: bool | Sequence[bool]
    ) -> list[float | None]:
        """Σ w·score / Σ w + weight·log-probability for each text, or None if a verifier fails.

        Args:
            partial: whether the replies are unfinished, for all texts or for each: value models read them as they are, others as if
                they were complete.
        """
        unfinished = [partial] * len(rows) if isinstance(partial, bool) else partial
        raw = [Exchange.of_task(row, text) for row, text in zip(rows, texts, strict=True)]
        closed = [Exchange.of_task(row, as_reply(text) if on else text) for row, text, on in zip(rows, texts, unfinished, strict=True)]
        total = [0.0] * len(rows)
        failed = [False] * len(rows)
        for verifier, weight in self._guides:
            for i, verdict in enumerate(judged(verifier, raw if getattr(verifier, "judges_prefixes", False) else closed)):
                failed[i] |= verdict.score is None
                total[i] += weight / self._mass * (verdict.score or 0.0)
        return [None if f else t + self._likelihood_weight * lp for f, t, lp in zip(failed, total, logprobs, strict=True)]


def best_of_n(engine: TokenEngine, guides: Guides, rows: Sequence[Row], n: int, sampling: Sampling) -> list[Answered]:
    """Samples n whole replies to each prompt and keeps the one with the highest score."""
    answered, prompts = _start(engine, rows, sampling)
    places = [i for i, answer in enumerate(answered) if answer.error is None]
    seeds = [_seeds(sampling.seed, rows[i], 0, n) for i in places]
    groups = continued([prompts[i] for i in places], [[]] * len(places), engine, sampling, n, seeds)
    flat = [(rows[i], completion) for i, group in zip(places, groups, strict=True) for completion in group]
    scores = guides.score([row for row, _ in flat], [c.text for _, c in flat], [_mean(c) for _, c in flat], partial=False)
    for number, (i, group) in enumerate(zip(places, groups, strict=True)):
        part = scores[number * n : (number + 1) * n]
        candidates = [Candidate(c.text, c.token_ids, score, _mean(c)) for c, score in zip(group, part, strict=True)]
        _extend(answered[i], candidates, [c.text for c in group], engine)
    return answered


def guided_steps(
    engine: TokenEngine, guides: Guides, rows: Sequence[Row], n: int, sampling: Sampling, *, step_tokens: int, boundaries: Sequence[str]
) -> list[Answered]:
    """Grows each reply step by step: n continuations to the next boundary, the best is kept, until it stops or is long enough."""
    answered, prompts = _start(engine, rows, sampling)
    step = 0
    while active := [i for i, a in enumerate(answered) if a.error is None and not a.stopped and len(a.token_ids) < sampling.max_tokens]:
        groups: dict[int, list[Completion]] = {}
        for room, places in _by_room(answered, active, sampling.max_tokens, step_tokens).items():
            one_step = replace(sampling, max_tokens=room, stop=tuple(boundaries))
            seeds = [_seeds(sampling.seed, rows[i], step, n) for i in places]
            drawn = continued([prompts[i] for i in places], [answered[i].token_ids for i in places], engine, one_step, n, seeds)
            groups |= dict(zip(places, drawn, strict=True))
        flat = [(i, c) for i in active for c in groups[i]]
        wholes = [engine.text_of(prompts[i].prompt_ids, answered[i].token_ids + c.token_ids) for i, c in flat]
        unfinished = [c.token_ids[-1] not in engine.stop_ids for _, c in flat]
        read = [whole.rstrip(BROKEN) if on else whole for whole, on in zip(wholes, unfinished, strict=True)]
        scores = guides.score([rows[i] for i, _ in flat], read, [_mean(c) for _, c in flat], partial=unfinished)
        for number, i in enumerate(active):
            part = slice(number * n, (number + 1) * n)
            candidates = [
                Candidate(_added(answered[i].reply, whole), c.token_ids, score, _mean(c))
                for (_, c), whole, score in zip(flat[part], wholes[part], scores[part], strict=True)
            ]
            _extend(answered[i], candidates, wholes[part], engine)
        step += 1
    return answered


def _start(engine: TokenEngine, rows: Sequence[Row], sampling: Sampling) -> tuple[list[Answered], list[EncodedPrompt]]:
    """Empty answers with the problem of each prompt that cannot be used, and the prompts."""
    asked = [encode_for(engine, row.prompt, sampling, row.images) for row in rows]
    return [Answered(error=prompt.problem) for prompt in asked], asked


def _by_room(answered: Sequence[Answered], active: Sequence[int], max_tokens: int, step_tokens: int) -> dict[int, list[int]]:
    """Tokens that the next step may take → the replies with so many left."""
    rooms: dict[int, list[int]] = {}
    for i in active:
        rooms.setdefault(min(step_tokens, max_tokens - len(answered[i].token_ids)), []).append(i)
    return rooms


def _seeds(seed: int, row: Row, step: int, n: int) -> list[int]:
    return [derived_seed(seed, row.id, step, candidate) for candidate in range(n)]


def _added(before: str, whole: str) -> str:
    """What a step adds, for people to read: the text after the previous reply without its incomplete last character."""
    complete = before.rstrip(BROKEN)
    return whole[len(complete) :] if whole.startswith(complete) else whole


def _extend(answer: Answered, candidates: list[Candidate], wholes: Sequence[str], engine: TokenEngine) -> None:
    """Keeps the best candidate.

    Args:
        wholes: the text of the reply so far with each candidate.
    """
    best = choose(candidates)
    answer.token_ids = answer.token_ids + candidates[best].token_ids
    answer.reply = wholes[best]
    answer.candidates.append(candidates)
    answer.chosen.append(best)
    answer.failed_steps += candidates[best].score is None
    answer.stopped = bool(answer.token_ids) and answer.token_ids[-1] in engine.stop_ids


def choose(candidates: Sequence[Candidate]) -> int:
    """The position of the best candidate: scored before unscored, then by score, then by likelihood."""
    return max(range(len(candidates)), key=lambda i: (candidates[i].score is not None, candidates[i].score or 0.0, candidates[i].logprob))


def as_reply(text: str) -> str:
    """A reply that is still in its thought, without the tag: verifiers judge what follows a thought."""
    return text if THINK_CLOSE in text else text.replace(THINK_OPEN, "")


def _mean(completion: Completion) -> float:
    return sum(completion.logprobs) / len(completion.logprobs) if completion.logprobs else 0.0
