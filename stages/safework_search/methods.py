"""The two ways of searching at inference, over any engine and any verifiers.

How SafeWork-R1 combines its principled value models is not published (`docs/safeladder.md` 7). Guided steps here choose, at each step, the
candidate with the highest weighted verifier score. A value model reads the reply as far as it goes; another verifier judges the reasoning
so far as if it were the reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from safework_cli.episode.runner import TokenEngine
from safework_cli.lm.chat import encode_prompt
from safework_cli.lm.engine import Completion, Sampling
from safework_cli.rows import THINK_CLOSE, THINK_OPEN, Row
from safework_cli.verifiers.contract import Exchange, Verifier, judged


@dataclass(slots=True)
class Candidate:
    """A continuation and what the guides said of it; ``score`` is None where one of them could not score it."""

    text: str
    score: float | None
    logprob: float
    """Mean log-probability per token."""


@dataclass(slots=True)
class Answered:
    """The chosen reply to one prompt.

    Attributes:
        candidates: for best-of-n one list; for guided steps one list per step.
        stopped: the reply ended by itself.
        failed_steps: steps at which no candidate could be scored (the likeliest was kept).
    """

    reply: str = ""
    token_ids: list[int] = field(default_factory=list)
    candidates: list[list[Candidate]] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    stopped: bool = False
    failed_steps: int = 0


@dataclass(slots=True)
class Guides:
    """Weighted verifiers as one score.

    Args:
        verifiers, weights: by name; the weights need not sum to one.
        likelihood_weight: of the mean log-probability.
    """

    verifiers: Mapping[str, Verifier]
    weights: Mapping[str, float]
    likelihood_weight: float

    def score(self, rows: Sequence[Row], texts: Sequence[str], logprobs: Sequence[float], *, partial: bool) -> list[float | None]:
        """Σ w·score / Σ w + weight·log-probability for each text, or None where a verifier fails.

        Args:
            partial: the texts are replies that go on: value models read them as they are, others what stands there as a reply.
        """
        raw = [Exchange.of(row, text) for row, text in zip(rows, texts, strict=True)]
        closed = [Exchange.of(row, as_reply(text)) for row, text in zip(rows, texts, strict=True)] if partial else raw
        total = [0.0] * len(rows)
        failed = [False] * len(rows)
        mass = sum(self.weights.get(name, 1.0) for name in self.verifiers)
        for name, verifier in self.verifiers.items():
            for i, verdict in enumerate(judged(verifier, raw if getattr(verifier, "judges_prefixes", False) else closed)):
                failed[i] |= verdict.score is None
                total[i] += self.weights.get(name, 1.0) * (verdict.score or 0.0) / mass
        return [None if f else t + self.likelihood_weight * lp for f, t, lp in zip(failed, total, logprobs, strict=True)]


def best_of_n(engine: TokenEngine, guides: Guides, rows: Sequence[Row], n: int, sampling: Sampling) -> list[Answered]:
    """Samples n whole replies to each prompt and keeps the one that the guides like best."""
    groups = engine.generate_ids([encode_prompt(engine.tokenizer, row.prompt) for row in rows], sampling, n)
    flat = [(row, completion) for row, group in zip(rows, groups, strict=True) for completion in group]
    scores = guides.score([row for row, _ in flat], [c.text for _, c in flat], [_mean(c) for _, c in flat], partial=False)
    answered = []
    for number, group in enumerate(groups):
        candidates = [Candidate(c.text, s, _mean(c)) for c, s in zip(group, scores[number * n : (number + 1) * n], strict=True)]
        best = choose(candidates)
        answer = Answered(group[best].text, group[best].token_ids, [candidates], [best], group[best].finish_reason == "stop")
        answer.failed_steps = int(candidates[best].score is None)
        answered.append(answer)
    return answered


def guided_steps(
    engine: TokenEngine, guides: Guides, rows: Sequence[Row], n: int, sampling: Sampling, *, step_tokens: int, boundaries: Sequence[str]
) -> list[Answered]:
    """Grows each reply step by step: n continuations to the next boundary, the best is kept, until it stops or is long enough."""
    prompts = [encode_prompt(engine.tokenizer, row.prompt) for row in rows]
    answered = [Answered() for _ in rows]
    active = list(range(len(rows)))
    step = 0
    while active:
        room = min(sampling.max_tokens - len(answered[i].token_ids) for i in active)
        one_step = replace(sampling, max_tokens=min(step_tokens, room), stop=tuple(boundaries), seed=sampling.seed * 1009 + step)
        groups = engine.generate_ids([prompts[i] + answered[i].token_ids for i in active], one_step, n)
        flat = [(i, c) for i, group in zip(active, groups, strict=True) for c in group]
        texts = [answered[i].reply + c.text for i, c in flat]
        scores = guides.score([rows[i] for i, _ in flat], texts, [_mean(c) for _, c in flat], partial=True)
        for number, (i, group) in enumerate(zip(active, groups, strict=True)):
            part = slice(number * n, (number + 1) * n)
            _extend(answered[i], group, [Candidate(c.text, s, _mean(c)) for c, s in zip(group, scores[part], strict=True)], engine)
        active = [i for i in active if not answered[i].stopped and len(answered[i].token_ids) < sampling.max_tokens]
        step += 1
    return answered


def _extend(answer: Answered, group: Sequence[Completion], candidates: list[Candidate], engine: TokenEngine) -> None:
    best = choose(candidates)
    answer.token_ids += group[best].token_ids
    answer.reply += group[best].text
    answer.candidates.append(candidates)
    answer.chosen.append(best)
    answer.failed_steps += candidates[best].score is None
    answer.stopped = bool(group[best].token_ids) and group[best].token_ids[-1] in engine.stop_ids


def choose(candidates: Sequence[Candidate]) -> int:
    """The position of the best candidate: scored before unscored, then by score, then by likelihood."""
    return max(range(len(candidates)), key=lambda i: (candidates[i].score is not None, candidates[i].score or 0.0, candidates[i].logprob))


def as_reply(text: str) -> str:
    """A reply that is still in its thought, as a verifier can read it: verifiers judge what follows the thought, and nothing does yet."""
    return text if THINK_CLOSE in text else text.replace(THINK_OPEN, "")


def _mean(completion: Completion) -> float:
    return sum(completion.logprobs) / len(completion.logprobs) if completion.logprobs else 0.0
