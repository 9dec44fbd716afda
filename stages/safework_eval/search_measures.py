"""The measures of a search suite, and their changes. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from safework_cli.environments.search.measures import AUROC, OF_EPISODES, SEARCHES, JudgedEpisode
from safework_cli.statistics.intervals import Estimate, estimate
from safework_cli.statistics.paired import compare_paired
from safework_cli.statistics.ranking import auroc_change, auroc_estimate
from safework_eval.samples import ScoredSample
from safework_eval.searching import RIGHT

NO_BOUND = (0.0, math.inf)
"""Of a count."""


def judged_episode(record: Mapping[str, Any], group: str) -> JudgedEpisode | None:
    """The episode of a sample's record (``ScoredSample.to_record``); None if it was not scored or is not an episode."""
    if record["outcome"] is None or record["well_formed"] is None:
        return None
    return JudgedEpisode(record["outcome"] >= RIGHT, record["confidence"], record["well_formed"], record["searches"], group)


def judged_episodes(samples: Sequence[ScoredSample]) -> dict[str, JudgedEpisode]:
    """Row id → its episode, of those that were scored."""
    judged = {sample.row.id: judged_episode(sample.to_record(), sample.row.group) for sample in samples}
    return {key: episode for key, episode in judged.items() if episode is not None}


def search_measures(episodes: Sequence[JudgedEpisode], certain: int) -> dict[str, dict[str, object]]:
    """Every measure with n, groups and interval."""
    values, groups = [episode.values(certain) for episode in episodes], [episode.group for episode in episodes]
    measures = {name: estimate([value[name] for value in values], groups).to_json() for name in OF_EPISODES}
    measures[AUROC] = _ranking(episodes).to_json()
    measures[SEARCHES] = estimate([value[SEARCHES] for value in values], groups, NO_BOUND).to_json()
    return measures


def search_changes(this: Mapping[str, JudgedEpisode], that: Mapping[str, JudgedEpisode], certain: int) -> dict[str, dict[str, object]]:
    """Measure → change from that side to this one, over the questions that both answered in a scored episode, paired by question."""
    shared = sorted(this.keys() & that.keys())
    groups = {key: this[key].group for key in shared}
    first, second = ({key: side[key].values(certain) for key in shared} for side in (this, that))
    changes: dict[str, dict[str, object]] = {}
    for name in (*OF_EPISODES, SEARCHES):
        one, other = ({key: side[key][name] for key in shared} for side in (first, second))
        changes[name] = compare_paired(one, other, groups, NO_BOUND if name == SEARCHES else (0.0, 1.0)).to_json()
    rankings = [_ranking([side[key] for key in shared]) for side in (this, that)]
    changes[AUROC] = auroc_change(*rankings)
    return changes


def _ranking(episodes: Sequence[JudgedEpisode]) -> Estimate:
    """AUROC of the confidence: an episode without an answer states none, and is left out."""
    stated = [(episode, episode.confidence) for episode in episodes if episode.confidence is not None]
    return auroc_estimate([confidence for _, confidence in stated], [e.right for e, _ in stated], [e.group for e, _ in stated])
