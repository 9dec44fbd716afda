"""A verifier on an OpenAI-compatible server: the same spec, asked over HTTP."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from safework_cli.data.row import Message
from safework_cli.data.text_safety import disarmed
from safework_cli.engines.openai import Answer, Endpoint
from safework_cli.engines.protocol import Sampling
from safework_cli.verifiers.contract import Exchange, Verdict
from safework_cli.verifiers.image_text import as_read
from safework_cli.verifiers.prompting import broken_tags, query_text
from safework_cli.verifiers.spec import QUERY, REFERENCE, RESPONSE, WARNING, LabelSpec
from safework_cli.verifiers.stated import after_thought, written_label
from safework_cli.verifiers.verdicts import asks_for_harm, template_for, unreadable, verdict_of, warning_of

TOP = 20
"""Requested most likely first tokens: the maximum of OpenAI's API, and of vLLM by default."""
MIN_SHARE = 0.5
"""Of the first token's probability that must lie on the codes; below it the judge began another word."""
CHARACTERS_PER_TOKEN = 4


class EndpointVerifier:
    """Judges by asking a served model for a label, and by the probabilities of its first token if the server returns them.

    Attributes:
        judged, truncated, empty: as in ``LabelVerifier``.
    """

    def __init__(self, spec: LabelSpec, *, name: str | None = None):
        assert spec.endpoint is not None
        self.spec, self.name = spec, name or spec.task
        self.endpoint = Endpoint(spec.endpoint)
        self.judged = self.truncated = self.empty = 0

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict for each exchange; an answer that is missing or is not a label is an error and never a class."""
        asked = [i for i, e in enumerate(exchanges) if e.final.strip() and not unreadable(self.spec, e, has_vision=False)]
        answers = iter(
            self.endpoint.ask([self._messages(exchanges[i]) for i in asked], Sampling(max_tokens=self.spec.answer_tokens), top=TOP)
        )
        verdicts: list[Verdict] = []
        self.judged += len(exchanges)
        chosen = set(asked)
        for i, exchange in enumerate(exchanges):
            if i in chosen:
                verdicts.append(self._verdict(next(answers)[0], exchange))
            elif why := unreadable(self.spec, exchange, has_vision=False):
                verdicts.append(Verdict(None, error=why))
            else:
                self.empty += 1
                verdicts.append(Verdict(self.spec.scores[self.spec.empty_label], self.spec.empty_label, 1.0))
        return verdicts

    def _messages(self, exchange: Exchange) -> list[Message]:
        exchange = as_read(self.spec, exchange, has_vision=False)
        limit = self.spec.max_length * CHARACTERS_PER_TOKEN
        texts = {
            QUERY: query_text(exchange.messages),
            REFERENCE: exchange.answer or "",
            WARNING: warning_of(exchange),
            RESPONSE: exchange.final,
        }
        cut = {place: _cut(text, limit // 2) for place, text in texts.items()}
        self.truncated += any(cut[place] != text for place, text in texts.items())
        pattern = re.compile("|".join(map(re.escape, texts)))  # in one pass: a reply may contain "{query}"
        content = pattern.sub(lambda match: disarmed(broken_tags(cut[match.group()])), template_for(self.spec, exchange))
        system = [Message(role="system", content=self.spec.system)] if self.spec.system else []
        return [*system, Message(role="user", content=content)]

    def _verdict(self, answer: Answer, exchange: Exchange) -> Verdict:
        if answer.error:
            return Verdict(None, error=answer.error, retry=True)
        cut = answer.finish_reason == "length"
        label = written_label(answer.text, self.spec, cut=cut)
        if label is None:
            return Verdict(None, error=self._unread(answer))
        probabilities = None if _thinks(answer) else first_token_probabilities(answer.first, self.spec, answer.text)
        if probabilities is not None and max(probabilities) == probabilities[self.spec.labels.index(label)]:
            return verdict_of(self.spec, probabilities, exchange)
        harmful = asks_for_harm(exchange)
        if self.spec.use_harmful and harmful is not None and harmful not in self.spec.possible[label]:
            return Verdict(None, error=f"the judge says '{label}', which is not possible for harmful={harmful}")
        return Verdict(self.spec.scores[label], label)

    def _unread(self, answer: Answer) -> str:
        """Why an answer is not a verdict."""
        if answer.finish_reason == "length" and (after_thought(answer.text) is None or not answer.text.strip()):
            return f"the judge was cut inside its thought after {self.spec.answer_tokens} tokens; raise answer_tokens"
        cut = f" (cut after {self.spec.answer_tokens} tokens: answer_tokens)" if answer.finish_reason == "length" else ""
        return f"the judge answered {answer.text.strip()[:60]!r}{cut}, which states none of its labels"


def _thinks(answer: Answer) -> bool:
    """Whether the first tokens are those of a thought, which do not show the verdict."""
    return bool(answer.thought) or after_thought(answer.text) != answer.text


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}\n[…]\n{text[-limit // 2 :]}"


def first_token_probabilities(first: dict[str, float], spec: LabelSpec, text: str | None = None) -> list[float] | None:
    """Label probabilities from the most likely first tokens, if each token begins exactly one code.

    None if the text must decide: some token with a share begins several codes, those that begin one are not what the judge said, or the
    text continues otherwise ("A reply that …" begins with the token of the code A).

    Args:
        first: token → log-probability. One of a single letter counts as it is written: "a" is an article.
        text: what the judge wrote, if it is known: it must begin with a code and nothing else.
    """
    if text is not None and _opening_code(text, spec) is None:
        return None
    shares = dict.fromkeys(spec.codes, 0.0)
    for token, logprob in first.items():
        word = token.strip()
        begun = [code for code in spec.codes if word and _begins(code, word)]
        if len(begun) > 1 and math.exp(logprob) > 0.01:
            return None
        if len(begun) == 1:
            shares[begun[0]] += math.exp(logprob)
    total = sum(shares.values())
    return [shares[code] / total for code in spec.codes] if total >= MIN_SHARE else None


def _begins(code: str, word: str) -> bool:
    return code.startswith(word) if len(code) == 1 else code.casefold().startswith(word.casefold())


def _opening_code(text: str, spec: LabelSpec) -> str | None:
    """The code that a text opens with and that ends there, or at a mark of punctuation."""
    opening = text.lstrip()
    return next(
        (
            code
            for code in spec.codes
            if _begins(opening[: len(code)], code) and re.match(r"\s*(?:$|[.,:;!?\n(*<=]|[-–—]\s)", opening[len(code) :])
        ),
        None,
    )
