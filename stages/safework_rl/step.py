"""One step of reinforcement learning, without a trainer: sample → judge → replace groups without a signal → advantages → masks.

``step`` is the whole of it, in order; what it calls is below it. Replacing groups is dynamic sampling (DAPO, arXiv 2503.14476): without
it, prompts that are always right or always wrong shrink the batch that the gradient is taken over. Here a group has no signal where it is
all right or all wrong in its task, whatever its summed rewards are.

Shapes: N groups of G completions, B = N·G rows; P prompt tokens (left-padded), T completion tokens (right-padded).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch.nn.utils.rnn import pad_sequence

from safework_cli.core.errors import TooManyFailed
from safework_cli.core.launch.world import World
from safework_cli.data.row import Row
from safework_cli.engines.protocol import Sampling, TokenEngine, completion_seeds, derived_seed
from safework_cli.environments.search.index import SearchIndex
from safework_cli.environments.search.runner import EpisodeLimits, Transcript, run_episodes
from safework_cli.models.vision import Vision
from safework_cli.training.group import spread
from safework_cli.verifiers.contract import Verdict
from safework_rl.config import RlConfig
from safework_rl.curriculum import Curriculum
from safework_rl.objectives import Objective, overlong_penalty


@dataclass(frozen=True, slots=True)
class Episodes:
    """What ``rl search`` samples in place of replies.

    Attributes:
        index, limits: of the environment.
        measure: numbers of the episodes of some rows.
    """

    index: SearchIndex
    limits: EpisodeLimits
    measure: Callable[[Sequence[Row], Sequence[Transcript]], Mapping[str, float]]


@dataclass(slots=True)
class StepContext:
    """What all steps of a run share.

    Attributes:
        rows: of the run; completions name theirs by its position.
        curriculum: where replacement prompts come from.
        encode: row → token ids of its prompt, and the vision inputs of its images.
        search: where completions are search episodes.
        refill: attempts to replace groups without a signal; 0 leaves them, without an advantage.
        unrewarded: tasks without a reward: their replies are not judged, have no advantage, and are trained on by the KL only.
        kl_counts: whether the KL to the reference counts on replies to a row.
        world: this process among those of the run. Each samples its share; what follows is the same in all of them, over all replies, and
            each then trains on its share of the groups (``own_places``).
        prepare: is given the rows of a rollout and of the next one, before they are asked for.
    """

    config: RlConfig
    objective: Objective
    rows: Sequence[Row]
    curriculum: Curriculum
    encode: Callable[[Row], tuple[list[int], Vision | None]]
    search: Episodes | None = None
    refill: int = 0
    unrewarded: Collection[str] = ()
    kl_counts: Callable[[Row], bool] = field(default=lambda row: True)
    world: World = field(default_factory=World)
    prepare: Callable[[Iterable[Row]], None] = field(default=lambda rows: None)

    def own_places(self, count: int) -> list[int]:
        """The groups of a rollout that this process trains on, in the order of its updates: the same share of each update's.

        Args:
            count: of the rollout's groups, whole updates of them.
        """
        if self.world.size == 1:
            return list(range(count))
        size, own = self.config.prompts_per_step, self.config.own_prompts_per_step
        first = self.world.rank * own
        return [place for start in range(0, count, size) for place in range(start + first, start + first + own)]

    def rewarded(self, group: Sequence[Trajectory]) -> bool:
        """Whether the replies of a group, which are to one row, can earn anything."""
        return self.rows[group[0].row].task not in self.unrewarded


@dataclass(slots=True)
class Trajectory:
    """A completion and what it earned.

    Attributes:
        row: the prompt, as a position among the run's rows.
        prompt_ids, token_ids: as the model read and sampled them; for an episode, retrieved text is among ``token_ids``.
        mask: 1 on tokens that the policy sampled; logprobs: their log-probabilities, 0.0 where mask is 0. (T,) each.
        reply: the text that is judged and shown; an episode's whole exchange.
        vision: the vision inputs of the prompt's images, of completions that this process trains on; one object for the group.
        transcript: of an episode.
        reward: in [0, 1] (search: up to 1 + λ), less an over-long penalty; NaN where a verifier could not score the reply, or
            where the task has no reward.
        correct: see ``objectives.Scored``.
        truncated: it did not end by itself.
    """

    row: int
    prompt_ids: list[int]
    token_ids: list[int]
    mask: list[int]
    logprobs: list[float]
    reply: str
    vision: Vision | None = None
    transcript: Transcript | None = None
    reward: float = math.nan
    correct: bool | None = None
    truncated: bool = False
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Sampled tokens."""
        return sum(self.mask)


Group = list[Trajectory]


@dataclass(slots=True)
class Batch:
    """What a step made.

    Attributes:
        number: of the step, from 0.
        drawn: a group for each prompt that the curriculum named: what the policy does, unselected. Measures are taken from it.
        kept: the same with groups without a signal replaced, as far as others were found: what is trained on.
        own: those of them that this process trains on, with their images, and that the tensors hold: all where it is the only one.
        attempts: how often was sampled.
        replaced: groups that were.
        advantage_NG: of all kept groups, by the objective.
        prompt_ids_BP, prompt_mask_BP, completion_ids_BT, completion_mask_BT: token ids, and 1 where one is.
        loss_mask_BT: 1 on the tokens that the policy sampled: neither padding nor retrieved text. Losses and lengths count only these.
        sampled_logp_BT: log-probabilities as the engine sampled; 0 where ``loss_mask_BT`` is.
        advantage_B: of the tensors' rows.
        group_tokens_B: sampled tokens of the row's whole group.
        numbers: the objective's own.
    """

    number: int
    drawn: list[Group]
    kept: list[Group]
    own: list[Group]
    attempts: int
    replaced: int
    advantage_NG: torch.Tensor
    prompt_ids_BP: torch.Tensor
    prompt_mask_BP: torch.Tensor
    completion_ids_BT: torch.Tensor
    completion_mask_BT: torch.Tensor
    loss_mask_BT: torch.Tensor
    sampled_logp_BT: torch.Tensor
    advantage_B: torch.Tensor
    group_tokens_B: torch.Tensor
    numbers: dict[str, float]


def step(engine: TokenEngine, prompts: Sequence[int], number: int, run: StepContext) -> Batch:
    """Samples a group of completions for each prompt, judges them, and makes the batch that the policy is trained on.

    What is drawn depends on the run's seed, the step's number, the attempt, the prompt and the completion's number in its group, so a
    resumed run draws what the uninterrupted one would have drawn, and several processes draw what one would.

    Args:
        engine: over the policy as it is now.
        prompts: positions of rows.
        number: of the step, from 0: which replacements it may take, and its draws.

    Raises:
        TooManyFailed: more replies could not be scored than ``max_unscorable`` accepts.
    """
    drawn = judge(sample(engine, prompts, number, 0, run), run)
    refuse_unscorable(flat([group for group in drawn if run.rewarded(group)]), run.config.max_unscorable)
    kept, attempts = refill(engine, drawn, prompts, number, run)

    reward_NG = torch.tensor([[t.reward for t in group] for group in kept])
    length_NG = lengths(kept)
    advantage_NG, numbers = torch.zeros_like(reward_NG), {}
    if places := [place for place, group in enumerate(kept) if run.rewarded(group)]:
        correct_NG = correctness([kept[place] for place in places])
        advantage_NG[places] = run.objective.advantages(reward_NG[places], length_NG[places], correct_NG).to(advantage_NG.dtype)
        numbers = run.objective.finish_step()

    places = run.own_places(len(kept))
    own = [with_images(kept[place], run) for place in places]
    trajectories = flat(own)
    prompt_ids_BP, prompt_mask_BP = padded([t.prompt_ids for t in trajectories], engine.tokenizer.pad_token_id, "left")
    completion_ids_BT, completion_mask_BT = padded([t.token_ids for t in trajectories], engine.tokenizer.pad_token_id, "right")
    return Batch(
        number=number,
        drawn=drawn,
        kept=kept,
        own=own,
        attempts=attempts,
        replaced=sum(old is not new for old, new in zip(drawn, kept, strict=True)),
        advantage_NG=advantage_NG,
        prompt_ids_BP=prompt_ids_BP,
        prompt_mask_BP=prompt_mask_BP,
        completion_ids_BT=completion_ids_BT,
        completion_mask_BT=completion_mask_BT,
        loss_mask_BT=pad_sequence([torch.tensor(t.mask, dtype=torch.long) for t in trajectories], batch_first=True),
        sampled_logp_BT=pad_sequence([torch.tensor(t.logprobs, dtype=torch.float32) for t in trajectories], batch_first=True),
        advantage_B=advantage_NG[places].flatten(),
        group_tokens_B=length_NG[places].sum(1).repeat_interleave(length_NG.shape[1]),
        numbers=numbers,
    )


# ---------------------------------------------------------------------------------------------------------------- parts of a step


def sample(engine: TokenEngine, prompts: Sequence[int], number: int, attempt: int, run: StepContext) -> list[Group]:
    """A group of completions, or of search episodes, for each prompt: each process samples its share, and all get all of them."""
    config, size = run.config, run.config.num_generations
    seed = derived_seed(config.seed, "rollout", number, attempt)
    # log-probabilities at the sampling temperature: that is the distribution which is trained
    sampling = Sampling(config.max_completion_length, config.temperature, seed=seed, logprobs_at=config.temperature)
    encoded = {row: run.encode(run.rows[row]) for row in prompts}
    seeds = completion_seeds(seed, [encoded[row][0] for row in prompts], size)  # of all: a prompt that comes twice is drawn twice

    def groups_of(places: Sequence[int]) -> list[Group]:
        rows = [prompts[place] for place in places for _ in range(size)]
        own_seeds = [seed for place in places for seed in seeds[place]]
        sent = run.world.size > 1  # without what images were encoded to: see with_images
        if run.search is not None:
            index, limits = run.search.index, run.search.limits
            asked = [encoded[row] for row in rows]
            transcripts = run_episodes(
                engine, index, [run.rows[row].prompt for row in rows], limits, sampling, seeds=own_seeds, encoded=asked
            )
            trajectories = [
                Trajectory(
                    row,
                    t.prompt_ids,
                    t.token_ids,
                    t.mask,
                    t.logprobs,
                    exchange_text(t),
                    None if sent else t.vision,
                    transcript=t,
                    truncated=t.ending != "answered",
                )
                for row, t in zip(rows, transcripts, strict=True)
            ]
        else:
            ids, images = [encoded[row][0] for row in rows], [encoded[row][1] for row in rows]
            completions = engine.generate_ids(ids, sampling, visions=images, seeds=[[seed] for seed in own_seeds])
            trajectories = [
                Trajectory(
                    row, c.prompt_ids, c.token_ids, [1] * len(c.token_ids), c.logprobs, c.text, None if sent else encoded[row][1],
                    truncated=c.finish_reason == "length",
                )
                for row, (c,) in zip(rows, completions, strict=True)
            ]  # fmt: skip
        return [trajectories[start : start + size] for start in range(0, len(trajectories), size)]

    whole = range(len(prompts))
    return groups_of(whole) if run.world.size == 1 else spread(run.world, whole, groups_of)


def with_images(group: Group, run: StepContext) -> Group:
    """The group with what its images were encoded to, which no process sends to another."""
    if run.rows[group[0].row].images and group[0].vision is None:
        vision = run.encode(run.rows[group[0].row])[1]
        for trajectory in group:
            trajectory.vision = vision
    return group


def judge(groups: list[Group], run: StepContext) -> list[Group]:
    """Fills in rewards, correctness and verdicts where the task has a reward; returns the groups."""
    trajectories = flat([group for group in groups if run.rewarded(group)])
    if not trajectories:
        return groups
    transcripts = [transcript for t in trajectories if (transcript := t.transcript) is not None]
    scored = run.objective.score([run.rows[t.row] for t in trajectories], [t.reply for t in trajectories], transcripts or None)
    length_B = torch.tensor([len(t.token_ids) for t in trajectories])  # retrieved text counts towards the limit
    overlong = run.config.overlong
    penalty_B = overlong_penalty(length_B, run.config.max_completion_length, overlong.buffer, overlong.factor)
    for i, (t, penalty) in enumerate(zip(trajectories, penalty_B.tolist(), strict=True)):
        t.reward, t.correct, t.verdicts = scored.reward[i] + penalty, scored.correct[i], scored.verdicts[i]
    return groups


def refuse_unscorable(trajectories: Sequence[Trajectory], share: float) -> None:
    """Raises TooManyFailed where more than this share of the replies has no score."""
    failed = [t for t in trajectories if math.isnan(t.reward)]
    if len(failed) > share * len(trajectories):
        name, error = next((name, v.error) for name, v in failed[0].verdicts.items() if v.error)
        raise TooManyFailed(
            f"{len(failed)} of {len(trajectories)} replies of a step could not be scored (verifier '{name}': {error})",
            f"max_unscorable accepts {share:.0%}; training on the rest would be training on something else",
            "fix the verifier or the rows; the same command then resumes from the last checkpoint",
        )


def refill(engine: TokenEngine, drawn: list[Group], prompts: Sequence[int], number: int, run: StepContext) -> tuple[list[Group], int]:
    """Replaces groups without a signal by groups of other prompts, as far as attempts and prompts last. Returns the groups, and how
    often was sampled, the first time included."""
    kept, taken, attempts = list(drawn), set(prompts), 1
    while attempts <= run.refill and (places := without_signal(kept, run)):
        spares = run.curriculum.spares(number, attempts, places, taken, run.unrewarded)
        if not spares:
            break
        taken.update(spares)
        fresh = judge(sample(engine, spares, number, attempts, run), run)
        useless = {*without_signal(fresh, run), *(i for i, group in enumerate(fresh) if any(r.correct is None for r in group))}
        for place, group in zip(places, (g for i, g in enumerate(fresh) if i not in useless), strict=False):
            kept[place] = group
        attempts += 1
    return kept, attempts


def without_signal(groups: list[Group], run: StepContext) -> list[int]:
    """Places of the groups that the objective does not want. Groups without a reward are not among them: the KL trains on these."""
    places = [place for place, group in enumerate(groups) if run.rewarded(group)]
    if not places:
        return []
    rewarded = [groups[place] for place in places]
    wanted_N = run.objective.wanted(correctness(rewarded), lengths(rewarded))
    return [place for place, wanted in zip(places, wanted_N.tolist(), strict=True) if not wanted]


def correctness(groups: list[Group]) -> torch.Tensor:
    """1, 0, or NaN for a reply that could not be scored, (N, G)."""
    return torch.tensor([[math.nan if r.correct is None else float(r.correct) for r in group] for group in groups])


def lengths(groups: list[Group]) -> torch.Tensor:
    """Sampled tokens of each reply, (N, G)."""
    return torch.tensor([[t.length for t in group] for group in groups])


def padded(rows: Sequence[Sequence[int]], value: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids as one tensor, and its mask: 1 where there is a token."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)
    return ids, pad_sequence([torch.ones_like(tensor) for tensor in tensors], batch_first=True, padding_side=side)


def flat(groups: Sequence[Group]) -> list[Trajectory]:
    """The completions of groups, in order."""
    return list(chain.from_iterable(groups))


def exchange_text(transcript: Transcript) -> str:
    """An episode as text, without its first message."""
    return "\n".join(f"[{message['role']}] {message['content']}" for message in transcript.messages[1:])
