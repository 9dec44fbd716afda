"""Evaluation of the policy in training on held-out prompts: how its replies are sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.data.row import Row
from safework_cli.engines.protocol import Completion, FinishReason, Sampling, TokenEngine
from safework_cli.environments.search.runner import Transcript, run_episodes
from safework_cli.models.vision import Prompt
from safework_cli.training.evaluation import Evaluation, evaluation_during
from safework_rl.config import RlConfig
from safework_rl.step import Episodes


@dataclass(slots=True)
class EpisodeCompletion(Completion):
    """The answer of an episode, with all of it."""

    transcript: Transcript = field(kw_only=True)


def policy_evaluation(
    config: RlConfig,
    inputs: Inputs,
    work: WorkDir,
    *,
    engine: Callable[[], AbstractContextManager[TokenEngine]],
    encode: Callable[[Row], Prompt],
    positions: float,
    search: Episodes | None,
) -> Evaluation | None:
    """The evaluation that the settings ask for; None where they ask for none. Search policies are judged on the answers of episodes.

    Args:
        engine: makes an engine over the policy as it is now.
        encode: makes token ids of a row's prompt with its images; for episodes, with the search instruction.
        positions: of the model, for prompt and reply together.
    """
    sampling = Sampling(config.eval_max_tokens, seed=config.seed)

    def sample(rows: Sequence[Row]) -> list[Completion]:
        encoded = [encode(row) for row in rows]
        with engine() as policy:
            if search is None:
                groups = policy.generate_ids([ids for ids, _ in encoded], sampling, visions=[vision for _, vision in encoded])
                return [group[0] for group in groups]
            transcripts = run_episodes(policy, search.index, [row.prompt for row in rows], search.limits, sampling, encoded=encoded)
        ended: dict[bool, FinishReason] = {True: "stop", False: "length"}
        return [
            EpisodeCompletion(
                t.answer or "", t.token_ids, t.logprobs, ended[t.ending == "answered"], t.prompt_ids, transcript=replace(t, vision=None)
            )
            for t in transcripts
        ]

    def measure(rows: Sequence[Row], completions: Sequence[Completion]) -> Mapping[str, float]:
        transcripts = [completion.transcript for completion in completions if isinstance(completion, EpisodeCompletion)]
        return search.measure(rows, transcripts) if search else {}

    return evaluation_during(
        config,
        inputs,
        work,
        length_of=lambda row: len(encode(row)[0]),
        longest=positions - config.evaluation_tokens,
        sample=sample,
        measure=measure,
        trust_remote_code=config.trust_remote_code,
    )
