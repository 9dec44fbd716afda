"""Exchange, verdict, verifier: what is judged, what is said of it, and who says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from safework_cli.core.errors import SafeworkError
from safework_cli.data.reply import parse_reply
from safework_cli.data.row import Image, Message, Row

UNPARSED = "unparsed"
"""The label of a reply in which a rule found no answer of the kind it compares: score 0, and counted apart from wrong answers."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and the reply to be judged.

    Attributes:
        messages: the prompt.
        reply: the whole reply, its thought with both tags included: each verifier takes the part that it judges.
        answer: the gold answer, or None.
        harmful: whether the prompt asks for something harmful, or None where unknown.
        meta: the row's ``meta`` (answer type, aliases, choices, constraints).
        images: the prompt's images, one for each ``<image>`` tag in it.
    """

    messages: Sequence[Message]
    reply: str
    answer: str | None = None
    harmful: bool | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    images: Sequence[Image] = ()

    @property
    def question(self) -> str:
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def final(self) -> str:
        """All that a user reads, which is everything outside the first thought: safety, value and knowledge are judged on it."""
        return parse_reply(self.reply).answer

    @classmethod
    def of(cls, row: Row, reply: str | None = None) -> Exchange:
        """The exchange of a row's prompt with a given reply, or with the row's own."""
        return cls(row.prompt, (row.reply if reply is None else reply) or "", row.answer, row.harmful, row.meta, row.images)

    @classmethod
    def of_task(cls, row: Row, reply: str) -> Exchange:
        """As ``of``, but outside the safety task no prompt is harmful unless its row says so: the refusal rule must know whether a refusal
        of it is right. For replies that a model in training or a search samples."""
        exchange = cls.of(row, reply)
        return exchange if row.harmful is not None or row.task == "safety" else replace(exchange, harmful=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's word.

    Attributes:
        score: in [0, 1], or None exactly where ``error`` says why the exchange could not be scored. Unscorable is never 0 or 1.
        label: the class, for label verifiers ("correct", "wrong" or ``UNPARSED`` for rules that compare answers).
        probability: of the label, for verifiers that have one.
        error: why the score is missing.
        retry: with ``error``: the judge's server gave no answer, so that a later attempt may succeed.
    """

    score: float | None
    label: str | None = None
    probability: float | None = None
    error: str | None = None
    retry: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if (self.score is None) == (self.error is None):
            raise ValueError("a verdict has either a score or an error")
        if self.score is not None and not 0.0 <= self.score <= 1.0:  # NaN fails this test too
            raise ValueError(f"score {self.score} is outside [0, 1]")


class Verifier(Protocol):
    """Judges exchanges. ``name`` appears in logs and metrics."""

    name: str

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict for each exchange, in order."""
        ...


def judged(verifier: Verifier, exchanges: Sequence[Exchange]) -> list[Verdict]:
    """``verifier.judge``, held to its contract: what it raises or leaves out is an unscorable exchange, not the end of the run.

    A batch that raises is judged one exchange at a time, so that one bad row does not cost its neighbours their verdicts. A score that
    is NaN or outside [0, 1] raises in ``Verdict`` and is caught here with the rest.

    Raises:
        SafeworkError: the verifier's own, which say what to do; or it returned more or fewer verdicts than it was asked for.
    """
    try:
        verdicts = list(verifier.judge(exchanges))
    except SafeworkError:
        raise
    except Exception as error:  # third-party code: anything may come
        if len(exchanges) > 1:
            return [verdict for exchange in exchanges for verdict in judged(verifier, [exchange])]
        return [Verdict(None, error=f"{type(error).__name__}: {error}")]
    if len(verdicts) != len(exchanges):
        raise SafeworkError(
            f"verifier '{verifier.name}' returned {len(verdicts)} verdicts for {len(exchanges)} exchanges",
            "which verdict belongs to which exchange is unknown",
            "its judge() must return one verdict for each exchange, in order",
        )
    nothing = "the verifier returned {}, which is not a verdict"
    return [v if isinstance(v, Verdict) else Verdict(None, error=nothing.format(type(v).__name__)) for v in verdicts]


def cut_for(verifier: Verifier) -> dict[str, int]:
    """How many exchanges a verifier has judged and how many of them did not fit into its ``max_length`` and were read without a part; empty
    where it cuts nothing, or does not count."""
    truncated = getattr(verifier, "truncated", 0)
    return {"truncated": truncated, "judged": getattr(verifier, "judged", 0)} if truncated else {}


def summarise(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Mean score, how many were scored, how many were not, in how many a rule found no answer (score 0), and how often each label fell."""
    scores = [v.score for v in verdicts if v.score is not None]
    labels: dict[str, int] = {}
    for verdict in verdicts:
        if verdict.label is not None:
            labels[verdict.label] = labels.get(verdict.label, 0) + 1
    return {
        "mean": sum(scores) / len(scores) if scores else None,
        "n": len(scores),
        "failed": len(verdicts) - len(scores),
        "unparsed": labels.get(UNPARSED, 0),
        "labels": labels,
    }
