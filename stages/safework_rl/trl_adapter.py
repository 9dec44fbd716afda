"""One trainer for the three stages, on TRL's GRPOTrainer: our rollouts, rewards, advantages and CPGD; its loop, sampler and other losses.

It overrides private methods of TRL 1.16; ``tests/stages/rl/test_rl_run.py`` holds their signatures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from safework_cli.core.errors import SafeworkError
from safework_cli.core.stage import WorkDir
from safework_cli.data.row import Row
from safework_cli.engines.hf.decode import unshareable
from safework_cli.engines.load import engine_over
from safework_cli.engines.protocol import TokenEngine
from safework_cli.environments.search.index import SearchIndex
from safework_cli.environments.search.runner import EpisodeLimits
from safework_cli.models.vision import Vision, collate, positions_given
from safework_rl.config import RlConfig
from safework_rl.curriculum import Curriculum
from safework_rl.losses.cpgd import cpgd_loss, epsilon_schedule, reference_kl
from safework_rl.measures import ADVANTAGES, round_measures
from safework_rl.objectives import Objective
from safework_rl.rollout import Rollouts, Sample, as_number, flat
from safework_rl.samples import SampleLog
from safework_rl.shared_prompt import group_logps

OF_KEPT = ("completions/", "reward", "frac_reward_zero_std")
"""Numbers of TRL's of the groups that were kept, which were chosen by what they earned."""


class LadderTrainer(GRPOTrainer):
    """A GRPOTrainer whose reward and advantage come from an ``Objective``.

    One rollout serves ``RlConfig.rollout_steps`` updates, each of whole groups: the passes of an update follow one another in the order of
    the rollout. Log-probabilities of the policy that sampled are computed once, before the first of them.

    Args:
        rows: by the number in the dataset's ``row`` column.
        encode: makes token ids of a row, and what its pictures gave.
        curriculum: where other prompts come from.
        search: index and limits, for stages whose rollouts are search episodes.
        refill: attempts to replace groups without a signal.
    """

    def __init__(
        self,
        *,
        config: RlConfig,
        objective: Objective,
        rows: Sequence[Row],
        curriculum: Curriculum,
        encode: Callable[[Row], tuple[list[int], Vision | None]],
        work: WorkDir,
        search: tuple[SearchIndex, EpisodeLimits] | None = None,
        refill: int = 0,
        **kwargs: Any,
    ):
        self.config, self.rows, self.work, self._encode = config, rows, work, encode
        self.objective: Objective = objective
        self.samples = SampleLog(work.path / "samples.jsonl")
        self._rollouts = Rollouts(config, objective, rows, curriculum, self._engine, encode, search, refill=refill)
        self._kept: list[Sample] = []
        self._passed: list[Sample] = []
        """The samples of the pass at hand: all that were kept while old log-probabilities are computed, then those of each pass."""
        super().__init__(reward_funcs=total_reward, rollout_func=_rollout, **kwargs)  # type: ignore[arg-type] # TRL types prompts as text
        self.first_gap: float | None = None
        self.scored: dict[str, Any] | None = None
        """The rollout at hand, as the passes take it: whole groups, one row for each completion."""
        self._share_prompts = config.share_prompts
        if reason := self._why_not_share():
            self._share_prompts = False
            work.progress.warn(f"prompt sharing is off in training: {reason}")

    def _why_not_share(self) -> str | None:
        if self.config.share_prompts and self.config.gradient_checkpointing:
            return "gradient_checkpointing recomputes layers and keeps no cache"
        if self.config.share_prompts and self.aux_loss_enabled:
            return "the router's auxiliary loss counts the tokens of whole sequences"
        return unshareable(self.accelerator.unwrap_model(self.model)) if self.config.share_prompts else None

    def _engine(self) -> TokenEngine:
        """The policy as it is now."""
        tokenizer = self.processing_class
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        model = self.accelerator.unwrap_model(self.model)
        return engine_over(model, tokenizer, self.config.generation_batch_size, share_prompts=self.config.share_prompts)

    # ------------------------------------------------------------ rollouts, rewards and advantages

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        number = self.state.global_step // self.config.rollout_steps
        assert len(inputs) % self.config.num_generations == 0, "a process holds whole groups"
        made = self._rollouts.round(number, [x["row"] for x in inputs[:: self.config.num_generations]])
        self._kept = self._passed = flat(made.kept)
        output = super()._generate_and_score_completions([{"prompt": self.rows[s.row].prompt, "row": s.row} for s in self._kept])

        mask_BT = output["completion_mask"] * output["tool_mask"]
        length_B = self.accelerator.gather(mask_BT.sum(1))
        reward_B = self.accelerator.gather(torch.tensor([s.reward for s in self._kept], device=length_B.device))
        correct_B = self.accelerator.gather(torch.tensor([as_number(s.correct) for s in self._kept], device=length_B.device))
        shape = (-1, self.num_generations)
        advantage_NG = self.objective.advantages(reward_B.view(shape), length_B.view(shape), correct_B.view(shape))
        group_tokens_B = length_B.view(shape).sum(1).repeat_interleave(self.num_generations)
        here = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        output["advantages"] = advantage_NG.reshape(-1)[here]
        output["group_tokens"] = group_tokens_B[here]
        output["sample"] = torch.arange(len(self._kept))

        measures = round_measures(made, self.rows) | self.objective.finish_step()
        measures["advantage/zero_share"] = float((advantage_NG == 0).all(dim=1).float().mean())
        numbers = self._metrics["train"]
        for name in [name for name in numbers if name.startswith(OF_KEPT)]:  # ours are of the groups that were drawn
            del numbers[name]
        for name, value in measures.items():
            numbers[name] = [value]
        if number % math.ceil(self.config.sample_steps / self.config.rollout_steps) == 0:
            self.samples.add(self.state.global_step, self.rows, flat(made.drawn))
        return output

    def rollout(self) -> dict[str, list[Any]]:
        """The round's completions, as TRL wants them."""
        return {
            "prompt_ids": [s.prompt_ids for s in self._kept],
            "completion_ids": [s.token_ids for s in self._kept],
            "logprobs": [s.logprobs for s in self._kept],
            "env_mask": [s.mask for s in self._kept],
        }

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        return self.accelerator.gather(torch.tensor([s.reward for s in self._kept], device=self.accelerator.device)[:, None])

    # ------------------------------------------------------------ loss

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's, but for its shuffle of a rollout's rows over its passes: a group that stays together shares its prompt. And the last
        rollout samples no more than the run's last updates take."""
        if not self.model.training:  # type: ignore[union-attr]
            return super()._prepare_inputs(generation_batch)
        passes, every = self.config.passes_per_rollout, self.config.passes_per_rollout * self.num_iterations
        begun = self._step - self._step % every  # a resumed run may be within a rollout
        used = min(passes, self.args.max_steps * self.args.gradient_accumulation_steps - begun)
        if self._step == begun or self.scored is None:
            self.scored = self._generate_and_score_completions(generation_batch[: len(generation_batch) * used // passes])
            self.scored["num_items_in_batch"] = self.scored["num_items_in_batch"] * passes / used  # TRL divides it among all passes
            self._buffered_inputs: Any = None
        if self._buffered_inputs is None:
            self._buffered_inputs = split_tensor_dict(self.scored, used)
        return self._buffered_inputs[self._step % passes]

    def resume_rollout(self, rows: Sequence[int], scored: Mapping[str, torch.Tensor]) -> None:
        """Restores the rollout within which a checkpoint was written.

        Args:
            rows: of each completion.
            scored: what ``scored`` was.
        """
        encoded = {row: self._encode(self.rows[row]) for row in dict.fromkeys(rows)}
        self._kept = [Sample(row, encoded[row][0], [], [], [], "", encoded[row][1]) for row in rows]
        self.scored = {name: tensor.to(self.accelerator.device) for name, tensor in scored.items()}

    @property
    def kept_rows(self) -> list[int]:
        """The row of each completion of the rollout at hand."""
        return [sample.row for sample in self._kept]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Log-probabilities and entropies of the completions, (B, T)."""
        size, first = batch_size or len(input_ids), input_ids.shape[1] - logits_to_keep
        parts: list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]] = []
        for start in range(0, len(input_ids), size):
            samples = self._passed[start : start + size]
            ids_bL, mask_bL = input_ids[start : start + size], attention_mask[start : start + size]
            visions = [s.vision for s in samples]
            if self._share_prompts and not compute_aux_loss:
                rows = [s.row for s in samples]
                prompts, completions = (ids_bL[:, :first], mask_bL[:, :first]), (ids_bL[:, first:], mask_bL[:, first:])
                with self.accelerator.autocast():
                    part = group_logps(model, rows, *prompts, *completions, visions, one_pass=self.accelerator.num_processes > 1)
                parts.append((part.log_probs, part.entropy, None))
                continue
            lengths = [len(s.prompt_ids) for s in samples]
            images: dict[str, Any] = {k: t.to(input_ids.device) for k, t in collate(visions, lengths, first, logits_to_keep).items()}
            if images:
                images["num_images"] = [len(self.rows[s.row].images) for s in samples]
            with positions_given(model):
                found: Any = super()._get_per_token_logps_and_entropies(
                    model, ids_bL, mask_bL, logits_to_keep, None, compute_entropy, compute_aux_loss, **images
                )
            parts.append(found)
        logp_BT = torch.cat([part[0] for part in parts])
        entropy_BT = torch.cat([part[1] for part in parts if part[1] is not None]) if compute_entropy else None
        aux = torch.stack([part[2] for part in parts if part[2] is not None]).mean() if compute_aux_loss else None
        self._last_logp_BT: torch.Tensor = logp_BT.detach()
        return logp_BT, entropy_BT, aux

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._passed = [self._kept[i] for i in inputs["sample"].tolist()]
        self._note(ADVANTAGES, float((inputs["advantages"] != 0).float().mean()))
        loss = self._cpgd(model, inputs) if self.config.algorithm == "cpgd" else super()._compute_loss(model, inputs)
        if torch.isfinite(loss):  # else the update is skipped, and counted
            self._check_engine(inputs)
        return loss

    def _cpgd(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        prompt_mask_BP, completion_mask_BT = inputs["prompt_mask"], inputs["completion_mask"]
        mask_BT = completion_mask_BT * inputs["tool_mask"]
        logp_BT, entropy_BT, router_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([prompt_mask_BP, completion_mask_BT], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
        )
        old_logp_BT = inputs.get("old_per_token_logps")
        settings = self.config.cpgd
        denominator_B = inputs["group_tokens"].clamp(min=1) * self.config.prompts_per_step
        parts = cpgd_loss(
            logp_BT,
            logp_BT.detach() if old_logp_BT is None else old_logp_BT,
            inputs["advantages"],
            mask_BT,
            denominator_B,
            epsilon_BT=epsilon_schedule(mask_BT, settings.epsilon, settings.tight),
            drift_coef=settings.drift_coef,
            drift_cap=settings.drift_cap,
        )
        loss = parts.loss
        tokens = mask_BT.sum().clamp(min=1)
        self._note("cpgd/clip_share", float(parts.clip_share))
        self._note("cpgd/drift", float(parts.drift))
        assert entropy_BT is not None
        self._note("entropy", float((entropy_BT.detach() * mask_BT).sum() / tokens))
        if self.beta:
            loss = loss + self.beta * reference_kl(logp_BT, inputs["ref_per_token_logps"], mask_BT, denominator_B)
            with torch.no_grad():
                self._note("kl", float(reference_kl(logp_BT, inputs["ref_per_token_logps"], mask_BT, tokens.expand(len(mask_BT)))))
        if router_loss is not None:  # of a mixture of experts: keeps its tokens spread, as in pretraining
            loss = loss + self.router_aux_loss_coef * router_loss / self.current_gradient_accumulation_steps
            self._note("aux_loss", float(router_loss.detach()))
        return loss

    def _check_engine(self, inputs: dict[str, Any]) -> None:
        """Measures how far the sampled log-probabilities lie from the trainer's own for the same tokens and the same weights."""
        own_BT = inputs.get("old_per_token_logps")
        own_BT = self._last_logp_BT if own_BT is None else own_BT
        mask_BT = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        difference = (own_BT - inputs["sampling_per_token_logps"])[mask_BT].abs()
        gap = float(difference.mean()) if difference.numel() else 0.0
        self._note("engine/logprob_gap", gap)
        limit = gap_limit(self.config.max_logprob_gap, self.first_gap, in_bf16=self.args.bf16)
        if not gap <= limit:  # also where the gap is NaN: that is not a small one
            first = "" if self.first_gap is None else f"; the first step's gap was {self.first_gap:.2g}"
            raise SafeworkError(
                f"the sampled log-probabilities are {gap:#.4g} nats per token away from the trainer's",
                f"at most {limit:.2g} is allowed (max_logprob_gap){first}: the engine that samples is not the policy that is trained",
                "check dtype and engine; max_logprob_gap=… allows more",
            )
        if self.first_gap is None:
            self.first_gap = gap

    def _note(self, name: str, value: float) -> None:
        """Takes a number of one pass; the step's is the mean over its passes."""
        self._metrics["train"][name].append(value)


def gap_limit(asked: float | None, first: float | None, *, in_bf16: bool) -> float:
    """The gap between sampled and trained log-probabilities from which a run stops, in nats a token.

    A healthy gap is about 1e-7 in float32 and 2e-3 in bfloat16.

    Args:
        asked: what the user set; it stands as it is.
        first: the first rollout's gap; later ones may be ten times as large, and no smaller limit than a tenth of the absolute one is set.
    """
    if asked is not None:
        return asked
    absolute = 0.02 if in_bf16 else 1e-3
    return absolute if first is None else min(absolute, max(absolute / 10, 10 * first))


def _rollout(prompts: list[Any], trainer: LadderTrainer) -> dict[str, list[Any]]:
    return trainer.rollout()


def total_reward(**_: Any) -> list[float]:
    raise AssertionError("rewards come from safework_rl.rollout")


__all__ = ["LadderTrainer", "gap_limit"]
