"""Who judges which suite, and what a verdict means for the suite's metric. Imports torch only when a trained verifier is loaded.

A rule judges safety by refusal phrases; a trained safety verifier, and the independent judge, by the six classes of
`docs/safeladder.md` 5.1. Where several are given, all verdicts are kept, one of them is the suite's judge, and their agreement is reported.
A verdict with an error gives no outcome: it is counted, and is neither 0 nor 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from safework_cli.core.errors import ConfigError
from safework_cli.data.row import Row
from safework_cli.verifiers import Exchange, Verdict, Verifier, judged
from safework_cli.verifiers.rules.registry import bare_name
from safework_eval.metrics import JUDGE, JudgedReply, Metric, MetricValue, metric_named, ordered

if TYPE_CHECKING:
    from safework_cli.core.artifacts import Artifact
    from safework_eval.samples import ScoredSample
    from safework_eval.selection import JudgeChoice, PlannedSuite


@dataclass(frozen=True, slots=True)
class Judge:
    """A verifier in the role of a judge.

    Attributes:
        id: "rule:refusal", "rule:correctness", "verifier:safety", …
        digest: of what a rule's verdicts rest on (its version, parameters and libraries), or of the verifier's payload: two records are
            alike only where it is equal.
        ref: the verifier artifact's reference, or empty for a rule.
        load: makes the verifier.
    """

    id: str
    digest: str
    ref: str
    load: Callable[[], Verifier]

    @property
    def is_rule(self) -> bool:
        return self.id.startswith("rule:")


@dataclass(frozen=True, slots=True)
class Panel:
    """The judges of a suite: the verdicts of the first give the suite's metric, those of the others are recorded too.

    Attributes:
        also: further metric → its judge, in the metrics' order.
    """

    first: Judge
    others: tuple[Judge, ...] = ()
    also: Mapping[str, Judge] = field(default_factory=dict)

    @property
    def judges(self) -> tuple[Judge, ...]:
        return (self.first, *self.others)

    def identity(self, metric: str) -> Judge:
        """The judge of a further metric; for one that reads every verdict, with the digests of all judges."""
        judge = self.also[metric]
        if not metric_named(metric).reads_all:
            return judge
        digests = "\n".join(sorted({each.digest for each in (judge, *self.judges)}))
        return replace(judge, digest=hashlib.sha256(digests.encode()).hexdigest())


def rule_judge(text: str) -> Judge:
    """A rule as a judge, named as settings name it. Raises ConfigError where there is none."""
    from safework_cli.verifiers.rules.registry import parse_rule, rule_digest, rule_verifier

    spec = parse_rule(text)
    return Judge(f"rule:{spec}", rule_digest(spec), "", lambda: rule_verifier(spec))


def artifact_judge(key: str, artifact: Artifact, batch_size: int, *, trust_remote_code: bool = False) -> Judge:
    def load() -> Verifier:
        from safework_cli.verifiers.load import load_verifier

        return load_verifier(artifact, batch_size=batch_size, trust_remote_code=trust_remote_code)

    return Judge(f"verifier:{key}", artifact.digest, artifact.ref, load)


def panel_for(suite: PlannedSuite, verifiers: Mapping[str, Artifact], batch_size: int, *, trust_remote_code: bool = False) -> Panel:
    """Chooses the judges of a suite.

    Args:
        trust_remote_code: run Python code that a verifier's folder brings along.

    Raises:
        ConfigError: `judge: verifier` without a verifier for the metric, a rule that cannot judge it, or rows that no judge here can judge.
    """
    metric = metric_named(suite.metric)
    trained = {
        key: artifact_judge(key, verifiers[key], batch_size, trust_remote_code=trust_remote_code)
        for key in wanted_keys(metric)
        if key in verifiers
    }
    panel = _own_panel(suite, metric, [trained[key] for key in verifier_keys(metric) if key in trained])
    others = (*panel.others, *(judge for judge in trained.values() if judge.id not in {each.id for each in panel.judges}))
    return replace(panel, others=others, also=_further(suite, metric, {judge.id: judge for judge in trained.values()}))


def wanted_keys(metric: Metric) -> tuple[str, ...]:
    """The keys of all verifiers that a metric and the further ones on the same replies can use."""
    further = [each.key for each in ordered(metric.also) if each.needs_verifier]
    return tuple(dict.fromkeys([*verifier_keys(metric), *further]))


def verifier_keys(metric: Metric) -> tuple[str, ...]:
    """The keys of the verifiers that can judge a metric, the preferred one first: the independent judge where refusals are counted."""
    return (JUDGE, metric.key) if metric.refusals else (metric.key,)


def _own_panel(suite: PlannedSuite, metric: Metric, trained: list[Judge]) -> Panel:
    """The judges of the suite's own metric."""
    key = verifier_keys(metric)[-1]
    named = suite.judge.startswith("rule:")
    if metric.needs_verifier and not named:
        if not trained:
            raise ConfigError(
                f"suite '{suite.name}' measures {suite.metric}, and verifiers.{key} is not given", "", f"add verifiers.{key}=REF"
            )
        return Panel(trained[0])
    if named or metric.rule is not None:
        rule = rule_judge(suite.judge if named else str(metric.rule))
    else:
        rule = Judge(f"metric:{metric.name}", f"{metric.name} {metric.version}", "", _NoVerdict)
    choice: JudgeChoice = "rule" if named else suite.judge
    if named and metric.rules and bare_name(rule.id.removeprefix("rule:")) not in metric.rules:
        raise ConfigError(
            f"suite '{suite.name}' measures {suite.metric}, and {rule.id} does not say whether a reply refuses",
            f"{suite.metric} is read from the labels of the rule {', '.join(metric.rules)}, or from a verifier's classes",
            f"judge: rule:{metric.rules[0]}, or verifiers.{key}=REFERENCE",
        )
    if choice == "verifier" and not trained:
        raise ConfigError(
            f"suite '{suite.name}' is to be judged by a verifier, and verifiers.{key} is not given",
            "no other judge is used instead",
            f"add verifiers.{key}=REFERENCE, or judge: rule",
        )
    comparable = named or not metric.needs_gold or metric.rule is None or any(_has_gold(row) for row in suite.rows)
    # containment ignores all other words of the answer: the overlap shows how many there are
    overlap = (rule_judge("f1"),) if comparable and {row.meta.get("answer_type") for row in suite.rows} == {"contains"} else ()
    if not trained:
        if not comparable:
            raise ConfigError(
                f"no row of suite '{suite.name}' has a gold answer, and verifiers.{key} is not given",
                "no judge here can score them",
                f"build the data with gold answers (columns: {{answer: COLUMN}}, constants: {{meta.answer_type: exact}}), "
                f"or add verifiers.{key}=REFERENCE",
            )
        return Panel(rule, overlap)
    if not comparable:
        return Panel(trained[0], tuple(trained[1:]))
    # A gold answer outranks a model's opinion of it; a refusal phrase does not outrank a model that read the reply.
    by_rule = choice == "rule" or (choice == "auto" and (metric.needs_gold or metric.rule is None))
    return Panel(rule, (*trained, *overlap)) if by_rule else Panel(trained[0], (rule, *trained[1:], *overlap))


def _further(suite: PlannedSuite, metric: Metric, trained: Mapping[str, Judge]) -> dict[str, Judge]:
    """The further metrics that can be measured here: their rule has gold answers to compare with, or their verifier is given."""
    further: dict[str, Judge] = {}
    for each in ordered(metric.also):
        if each.needs_verifier:
            if (judge := trained.get(f"verifier:{each.key}")) is not None:
                further[each.name] = judge
        elif each.rule is not None and (not each.needs_gold or any(_has_gold(row) for row in suite.rows)):
            further[each.name] = rule_judge(each.rule)
    return further


def _has_gold(row: Row) -> bool:
    return row.answer is not None or bool(row.meta.get("constraints"))


class _NoVerdict:
    """The judge of a metric that needs no verdict: its verdicts are empty."""

    name = "no verdict"

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(0.0) for _ in exchanges]


def measure(metric: str, judge: Judge, verdict: Verdict, sample: ScoredSample | None = None) -> MetricValue:
    """A metric's value of one reply by one judge; the verdicts that the sample has so far are the other judges'."""
    if verdict.error is not None or sample is None or sample.reply.error:
        return MetricValue(None, verdict.error or "there is no reply to judge")
    said = {name: each for name, each in sample.verdicts.items() if each.error is None}
    judged_reply = JudgedReply(sample.row, sample.reply.text, sample.answer, sample.reply.tokens, verdict, judge.is_rule, said)
    return metric_named(metric).measure(judged_reply)


def verdicts_on(verifier: Verifier, samples: Sequence[ScoredSample]) -> list[Verdict]:
    """One verdict for each sample; one without a reply gets an error of its own."""
    exchanges = [sample.exchange() for sample in samples]
    verdicts = iter(judged(verifier, [exchange for exchange in exchanges if exchange is not None]))
    missing = Verdict(None, error="there is no reply to judge")
    return [missing if exchange is None else next(verdicts) for exchange in exchanges]


def score_samples(judge: Judge, verifier: Verifier, samples: Sequence[ScoredSample], metrics: Mapping[str, str]) -> None:
    """Judges samples with one loaded verifier and fills their verdicts, outcomes and errors. The only scorer of replies.

    Args:
        samples: of any suites.
        metrics: suite → metric.
    """
    for sample, verdict in zip(samples, verdicts_on(verifier, samples), strict=True):
        outcome = measure(metrics[sample.suite], judge, verdict, sample)
        sample.verdicts[judge.id], sample.outcomes[judge.id], sample.errors[judge.id] = verdict, outcome.value, outcome.error


def measure_further(samples: Sequence[ScoredSample], panels: Mapping[str, Panel]) -> None:
    """Fills the further metrics of samples that every judge of their suite has judged; other rules are applied here."""
    by_suite: dict[str, list[ScoredSample]] = {}
    for sample in samples:
        by_suite.setdefault(sample.suite, []).append(sample)
    for suite, own in by_suite.items():
        given: dict[str, list[Verdict]] = {}
        for metric, judge in panels[suite].also.items():
            if judge.id not in given:
                known = all(judge.id in sample.verdicts for sample in own)
                given[judge.id] = [sample.verdicts[judge.id] for sample in own] if known else verdicts_on(judge.load(), own)
            for sample, verdict in zip(own, given[judge.id], strict=True):
                sample.also[metric] = measure(metric, judge, verdict, sample)


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> dict[str, float | int | None]:
    """How far two judges of the same replies agree, over those that both could score.

    Returns:
        ``n``; ``share`` of equal outcomes (two scores are equal within 0.5); ``kappa`` (J. Cohen 1960), None where both
        give one outcome to every reply.
    """
    pairs = [(a >= 0.5, b >= 0.5) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        return {"n": 0, "share": None, "kappa": None}
    import numpy as np  # planning needs neither

    from safework_cli.statistics.classification import accuracy, cohen_kappa

    one_N, other_N = np.array(pairs, dtype=np.int64).T
    return {"n": len(pairs), "share": accuracy(one_N, other_N), "kappa": cohen_kappa(one_N, other_N, 2)}
