"""Evaluation of the policy in training on held-out prompts: how its replies are sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.data.row import Row
from safework_cli.engines.protocol import Completion, Sampling, TokenEngine
from safework_cli.environments.search.index import SearchIndex
from safework_cli.environments.search.runner import EpisodeLimits, run_episodes
from safework_cli.models.vision import Prompt
from safework_cli.training.evaluation import Evaluation, evaluation_during
from safework_rl.config import RlConfig


def policy_evaluation(
    config: RlConfig,
    inputs: Inputs,
    work: WorkDir,
    *,
    engine: Callable[[], AbstractContextManager[TokenEngine]],
    encode: Callable[[Row], Prompt],
    positions: float,
    search: tuple[SearchIndex, EpisodeLimits] | None,
) -> Evaluation | None:
    """The evaluation that the settings ask for; None where they ask for none. Search policies are judged on the answers of episodes.

    Args:
        engine: makes an engine over the policy as it is now.
        encode: makes token ids of a row's prompt with its images; for episodes, with the search instruction.
        positions: of the model, for prompt and reply together.
    """
    sampling = Sampling(config.eval_max_tokens, seed=config.seed)

    def sample(rows: Sequence[Row]) -> list[Completion]:
        if search is None:
            encoded = [encode(row) for row in rows]
            with engine() as policy:
                groups = policy.generate_ids([ids for ids, _ in encoded], sampling, visions=[vision for _, vision in encoded])
            return [group[0] for group in groups]
        with engine() as policy:
            asked = [encode(row) for row in rows]
            transcripts = run_episodes(policy, search[0], [row.prompt for row in rows], search[1], sampling, encoded=asked)
        return [
            Completion(t.answer or "", t.token_ids, t.logprobs, "stop" if t.ending == "answered" else "length", t.prompt_ids)
            for t in transcripts
        ]

    return evaluation_during(
        config,
        inputs,
        work,
        length_of=lambda row: len(encode(row)[0]),
        longest=positions - (config.eval_max_tokens if search is None else config.max_completion_length),
        sample=sample,
        trust_remote_code=config.trust_remote_code,
    )
