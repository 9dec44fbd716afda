"""A verifier behind an OpenAI-compatible endpoint: the same spec, asked over HTTP."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from safework_cli.lm.endpoint import Endpoint, Said
from safework_cli.lm.engine import Sampling
from safework_cli.rows import Message
from safework_cli.verifiers.contract import Exchange, Verdict
from safework_cli.verifiers.prompting import BREAK, broken_tags, query_text
from safework_cli.verifiers.spec import QUERY, REFERENCE, RESPONSE, LabelSpec
from safework_cli.verifiers.verdicts import template_for, unreadable, verdict_of

TOP = 20
"""Likeliest first tokens asked for: what OpenAI's API allows at most, and vLLM by default."""
MIN_SHARE = 0.5
"""Of the first token's probability that must lie on the codes; below it the judge began another word."""
MAX_TOKENS = 24
"""Of an answer: a label and a little more. SafeWork-R1's judges answer within 16."""
CHARACTERS_PER_TOKEN = 4
_CONTROL = re.compile(r"<(?=\|)|\[(?=/?INST\])|<(?=/?s>)")


class EndpointVerifier:
    """Judges by asking a served model for a label, and by the probabilities of its first token where the server tells them.

    Attributes:
        judged, truncated, empty: as in ``LabelVerifier``.
    """

    def __init__(self, spec: LabelSpec, *, name: str | None = None):
        assert spec.endpoint is not None
        self.spec, self.name = spec, name or spec.task
        self.endpoint = Endpoint(spec.endpoint)
        self.judged = self.truncated = self.empty = 0

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict for each exchange; an answer that could not be had, or is no label, is an error and never a class."""
        asked = [i for i, e in enumerate(exchanges) if e.final.strip() and not unreadable(self.spec, e, sees=False)]
        said = iter(self.endpoint.ask([self._messages(exchanges[i]) for i in asked], Sampling(max_tokens=MAX_TOKENS), top=TOP))
        verdicts: list[Verdict] = []
        self.judged += len(exchanges)
        chosen = set(asked)
        for i, exchange in enumerate(exchanges):
            if i in chosen:
                verdicts.append(self._verdict(next(said)[0], exchange))
            elif why := unreadable(self.spec, exchange, sees=False):
                verdicts.append(Verdict(None, error=why))
            else:
                self.empty += 1
                verdicts.append(Verdict(self.spec.scores[self.spec.empty_label], self.spec.empty_label, 1.0))
        return verdicts

    def _messages(self, exchange: Exchange) -> list[Message]:
        limit = self.spec.max_length * CHARACTERS_PER_TOKEN
        texts = {QUERY: query_text(exchange.messages), REFERENCE: exchange.answer or "", RESPONSE: exchange.final}
        cut = {place: _cut(text, limit // 2) for place, text in texts.items()}
        self.truncated += any(cut[place] != text for place, text in texts.items())
        pattern = re.compile("|".join(map(re.escape, texts)))  # at once: a reply may hold "{query}"
        content = pattern.sub(lambda match: disarmed(cut[match.group()]), template_for(self.spec, exchange))
        system = [Message(role="system", content=self.spec.system)] if self.spec.system else []
        return [*system, Message(role="user", content=content)]

    def _verdict(self, said: Said, exchange: Exchange) -> Verdict:
        if said.error:
            return Verdict(None, error=said.error)
        probabilities = first_token_probabilities(said.first, self.spec)
        if probabilities is not None:
            return verdict_of(self.spec, probabilities, exchange)
        label = written_label(said.text, self.spec)
        if label is None:
            return Verdict(None, error=f"the judge answered {said.text[:60]!r}, which is none of its labels")
        return Verdict(self.spec.scores[label], label)


def disarmed(text: str) -> str:
    """Untrusted text without our tags and without what servers read as control tokens; it still reads the same."""
    return _CONTROL.sub(lambda match: match.group() + BREAK, broken_tags(text))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}\n[…]\n{text[-limit // 2 :]}"


def first_token_probabilities(first: dict[str, float], spec: LabelSpec) -> list[float] | None:
    """Label probabilities from the likeliest first tokens, as far as each token is the beginning of one code alone.

    None where the text must tell: some token with a share begins several codes, or those that begin one are not what the judge said.
    """
    shares = dict.fromkeys(spec.codes, 0.0)
    for token, logprob in first.items():
        text = token.strip().lower()
        begun = [code for code in spec.codes if text and code.lower().startswith(text)]
        if len(begun) > 1 and math.exp(logprob) > 0.01:
            return None
        if len(begun) == 1:
            shares[begun[0]] += math.exp(logprob)
    total = sum(shares.values())
    return [shares[code] / total for code in spec.codes] if total >= MIN_SHARE else None


def written_label(text: str, spec: LabelSpec) -> str | None:
    """The label that an answer writes: equal to a code or a label, else the one that occurs first, the longest where two begin together."""
    plain = text.strip().strip(".\"'*` ").lower()
    names = {name.lower(): label for label, code in zip(spec.labels, spec.codes, strict=True) for name in (label, code)}
    if plain in names:
        return names[plain]
    found = [(match.start(), -len(name), label) for name, label in names.items() if (match := re.search(rf"\b{re.escape(name)}\b", plain))]
    return min(found)[2] if found else None
