"""The adapter to TRL: its ``GRPOTrainer`` supplies loop, sampler, optimiser and its own losses; ``step.step`` supplies the batch.

TRL's path of rewards and advantages is never called: ``_prepare_inputs`` makes the batch with one call of ``step``, and the passes take
their rows from it. Two private methods are overridden, that one and the one for log-probabilities (both TRL 1.16;
``tests/stages/rl/test_rl_run.py`` checks their signatures), and two public ones, ``compute_loss`` and ``log``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import add_fused_lm_head, split_tensor_dict, use_adapter

from safework_cli.core.errors import GateFailed
from safework_cli.core.heap import return_freed_memory
from safework_cli.core.stage import WorkDir
from safework_cli.engines.hf.decode import unshareable
from safework_cli.engines.load import engine_over
from safework_cli.engines.protocol import TokenEngine
from safework_cli.models.attention import attention_in_float32
from safework_cli.models.vision import collate, positions_given
from safework_cli.training.group import gathered
from safework_cli.training.interruptible import interruptible
from safework_cli.training.strategy import DIVIDED, prepared_to_read, whole_policy
from safework_rl.engine_gap import engine_ratio, gap_limit
from safework_rl.losses.contract import LossInput, reference_kl
from safework_rl.losses.trl import TrlLoss
from safework_rl.measures import ADVANTAGES, DISTILLED, step_measures
from safework_rl.objectives import Objective
from safework_rl.samples import SampleLog
from safework_rl.shared_prompt import group_logps
from safework_rl.step import Batch, StepContext, Trajectory, flat, step
from safework_rl.vllm_policy import VllmPolicy

OLD = "old_per_token_logps"
"""TRL's name of the log-probabilities of the policy that sampled."""
RATIO = "engine_ratio"
"""What another engine's tokens are weighted by."""


class LadderTrainer(GRPOTrainer):
    """A GRPOTrainer that trains on the batches of ``step``.

    One rollout serves ``RlConfig.rollout_steps`` updates, each of whole groups: the passes of an update are consecutive in the order of
    the rollout. Log-probabilities of the policy that sampled are computed once: before the first update, or, where the first update goes
    over the whole rollout, by its own passes.
    """

    def __init__(
        self,
        *,
        run: StepContext,
        work: WorkDir,
        args: GRPOConfig,
        folder: Path,
        processor: Any = None,
        reference: PreTrainedModel | None = None,
        **kwargs: Any,
    ):
        self.run, self.config, self.work = run, run.config, work
        self.objective: Objective = run.objective
        self.loss = run.config.policy_loss
        self.samples = SampleLog(work.path / "samples.jsonl")
        self.first_gap: float | None = None
        self.scored: dict[str, torch.Tensor] | None = None
        """Tensors of the current rollout, one row for each completion, whole groups."""
        self._kept: list[Trajectory] = []
        self._passed: list[Trajectory] = []
        """The completions of the current pass: all that were kept while old log-probabilities are computed, then those of each pass."""
        self._unreported: tuple[int, Batch] | None = None
        self._order = run.curriculum.order()
        self._folder, self._processor = folder, processor
        self._vllm: VllmPolicy | None = None
        if reference is not None:
            args.beta = 0.0  # so that TRL does not load the starting model as the reference
        super().__init__(reward_funcs=no_reward, args=args, **kwargs)
        if reference is not None:
            self.beta = self.config.beta
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = prepared_to_read(self.accelerator, reference)
        self._share_prompts = run.config.share_prompts
        self._on_cpu_in_bf16 = bool(self.args.bf16) and self.accelerator.device.type == "cpu"
        if self._on_cpu_in_bf16:
            self._logits_in_float32()
        if reason := self._why_not_share():
            self._share_prompts = False
            work.progress.warn(f"prompt sharing is off in training: {reason}")

    def _logits_in_float32(self) -> None:
        """On a CPU: an update moves a log-probability by less than bfloat16 rounds a logit (``models.precision``)."""
        policy = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        for model, outputs in ((policy, ("log_probs", "entropy")), (self.ref_model, ("log_probs",))):
            if model is not None:
                add_fused_lm_head(cast(PreTrainedModel, model), temperature=self.temperature, cast_lm_head_to_fp32=True, outputs=outputs)

    def _why_not_share(self) -> str | None:
        if self.config.share_prompts and self.config.launch.strategy == "fsdp":
            return "FSDP gathers a layer's weights for one pass at a time"
        if self.config.share_prompts and self.config.gradient_checkpointing:
            return "gradient_checkpointing recomputes layers and keeps no cache"
        if self.config.share_prompts and self.aux_loss_enabled:
            return "the router's auxiliary loss counts the tokens of whole sequences"
        return unshareable(self.accelerator.unwrap_model(self.model)) if self.config.share_prompts else None

    @contextmanager
    def engine(self) -> Iterator[TokenEngine]:
        """The policy as it is now. Where there are several processes, all of them call this."""
        tokenizer = self.processing_class
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        size, share, bf16 = self.config.generation_batch_size, self.config.share_prompts, bool(self.args.bf16)
        if self.config.engine.kind == "hf":
            return_freed_memory()  # updates and sampling do not fit what the other has freed, and each rollout has sizes of its own
            with whole_policy(self) as model:
                yield engine_over(model, tokenizer, size, share_prompts=share, bf16=bf16)
            return_freed_memory()
            return
        if self._vllm is None:
            self._vllm = VllmPolicy(self.config, self._folder, tokenizer, self.work, in_bf16=bf16, processor=self._processor)
        yield self._vllm.at(self, self.state.global_step)

    # ------------------------------------------------------------ rollouts

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """The rows of the next pass. The last rollout samples no more than the run's last updates take."""
        passes, every = self.config.passes_per_rollout, self.config.passes_per_rollout * self.num_iterations
        start = self._step - self._step % every  # a resumed run may be within a rollout
        used = min(passes, self.args.max_steps * self.args.gradient_accumulation_steps - start)
        if self._step == start or self.scored is None:
            number, size = self.state.global_step // self.config.rollout_steps, self.config.prompts_per_rollout
            rows = self._order[number * size : (number + 1) * size][: size * used // passes]
            self.run.prepare(self.run.rows[row] for row in self._order[number * size : (number + 2) * size])
            before = self.objective.state()
            with interruptible(self, self.work, lambda: self.objective.load_state(before)), self.engine() as engine:
                batch = step(engine, rows, number, self.run)
            self.scored = self._tensors(batch, begun=self._step > start)
            self.scored["num_items_in_batch"] = self.scored["num_items_in_batch"] * passes / used  # TRL divides it among all passes
            self._buffered_inputs: Any = None
        if self._buffered_inputs is None:
            self._buffered_inputs = split_tensor_dict(dict(self.scored), used)
        inputs: dict[str, Any] = self._buffered_inputs[self._step % passes]
        if self._kept_by_first_update and self._step - start < passes:
            return {name: tensor for name, tensor in inputs.items() if name != OLD}
        return inputs

    def _tensors(self, batch: Batch, *, begun: bool) -> dict[str, torch.Tensor]:
        """A batch under the names that TRL's losses read, with log-probabilities of the policy that sampled and of the reference.

        Args:
            begun: passes of the rollout's first update were made before it was sampled, by the run that this one was forked from.
        """
        self._kept = self._passed = flat(batch.own)
        self._unreported = (self.state.global_step, batch)
        tensors = {
            "prompt_ids": batch.prompt_ids_BP,
            "prompt_mask": batch.prompt_mask_BP,
            "completion_ids": batch.completion_ids_BT,
            "completion_mask": batch.completion_mask_BT,
            "loss_mask": batch.loss_mask_BT,
            "sampling_per_token_logps": batch.sampled_logp_BT,
            "advantages": batch.advantage_B,
            "group_tokens": batch.group_tokens_B,
            "place": torch.arange(len(self._kept)),
        }
        tensors = {name: tensor.to(self.accelerator.device) for name, tensor in tensors.items()}
        tensors["num_items_in_batch"] = self.accelerator.gather(tensors["loss_mask"].sum()).sum()
        model, options = cast(PreTrainedModel, self.model), cast(dict[str, Any], self.args.gradient_checkpointing_kwargs)
        with torch.no_grad(), disable_gradient_checkpointing(model, options):
            if self._corrected or self.args.gradient_accumulation_steps % (self.config.passes_per_rollout * self.num_iterations):
                if self._kept_by_first_update and not begun:
                    tensors[OLD] = torch.zeros_like(tensors["sampling_per_token_logps"])
                else:
                    tensors[OLD] = self._logps(model, tensors, self.config.per_device_train_batch_size)[0]
            if self._corrected:
                cap = self.config.engine.ratio_cap or math.inf
                ratio = engine_ratio(tensors[OLD], tensors["sampling_per_token_logps"], tensors["loss_mask"], cap)
                tensors[RATIO] = ratio.capped_BT
                self._note("engine/ratio", ratio.mean)
                self._note("engine/ratio_capped", ratio.capped_share)
            if self.beta:
                tensors["ref_per_token_logps"] = self._reference_logps(tensors)
        return tensors

    def _reference_logps(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of the rollout's completions under the reference, (B, T); 0 where the KL does not count."""
        size = self.config.per_device_train_batch_size
        counted = [place for place, counts in enumerate(self._kl_counts()) if counts]
        # where weights are divided, every process has to make as many passes as the others
        places = list(range(len(self._kept))) if self.config.launch.strategy in DIVIDED else counted
        with self._reference() as reference:
            if len(places) == len(self._kept):
                return self._logps(reference, tensors, size)[0]
            logp_BT = torch.zeros_like(tensors["sampling_per_token_logps"])
            if places:
                self._passed = [self._kept[place] for place in places]
                logp_BT[places] = self._logps(reference, {name: tensor[places] for name, tensor in tensors.items() if tensor.ndim}, size)[0]
                self._passed = self._kept
            return logp_BT

    def _kl_counts(self) -> list[bool]:
        """Whether the KL counts on each completion of the current pass."""
        return [self.run.kl_counts(self.run.rows[trajectory.row]) for trajectory in self._passed]

    @property
    def _kept_by_first_update(self) -> bool:
        """Whether the passes of a rollout's first update go over all of it: what they compute is of the policy that sampled."""
        return self.config.updates_per_rollout == 1 and not self._corrected

    @property
    def _corrected(self) -> bool:
        """Whether another engine samples, and its tokens are weighted by what the trainer makes of them."""
        return self.config.engine.kind == "vllm" and self.config.engine.ratio_cap is not None

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        """The model that ``beta`` compares with: the one that was given, the start, or the policy without its adapters."""
        if self.ref_model is not None:
            with attention_in_float32(self.ref_model) if self._on_cpu_in_bf16 else nullcontext():
                yield self.ref_model
            return
        with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None):
            yield self.model

    def resume_rollout(self, rows: Sequence[int], scored: Mapping[str, torch.Tensor]) -> None:
        """Restores the rollout within which a checkpoint was written.

        Args:
            rows: of each completion.
            scored: what ``scored`` was.
        """
        encoded = {row: self.run.encode(self.run.rows[row]) for row in dict.fromkeys(rows)}
        self._kept = [Trajectory(row, encoded[row][0], [], [], [], "", encoded[row][1]) for row in rows]
        self.scored = {name: tensor.to(self.accelerator.device) for name, tensor in scored.items()}

    @property
    def kept_rows(self) -> list[int]:
        """The row of each completion of the current rollout."""
        return [trajectory.row for trajectory in self._kept]

    # ------------------------------------------------------------ log-probabilities

    def _logps(self, model: Any, inputs: dict[str, Any], batch_size: int | None = None, **options: bool) -> Any:
        """Log-probabilities of the completions of a pass, and what ``options`` ask for."""
        return self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            batch_size,
            **options,
        )

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
            passed = self._passed[start : start + size]
            ids_bL, mask_bL = input_ids[start : start + size], attention_mask[start : start + size]
            visions = [t.vision for t in passed]
            if self._share_prompts and not compute_aux_loss:
                rows = [t.row for t in passed]
                prompts, completions = (ids_bL[:, :first], mask_bL[:, :first]), (ids_bL[:, first:], mask_bL[:, first:])
                one_pass = self.accelerator.num_processes > 1
                with self.accelerator.autocast():
                    shared = group_logps(model, rows, *prompts, *completions, visions, one_pass=one_pass)
                parts.append((shared.log_probs, shared.entropy, None))
                continue
            lengths = [len(t.prompt_ids) for t in passed]
            images = {name: tensor.to(input_ids.device) for name, tensor in collate(visions, lengths, first, logits_to_keep).items()}
            with positions_given(model), self.accelerator.autocast():
                part: Any = (
                    self._with_images(model, ids_bL, mask_bL, logits_to_keep, images, compute_entropy, compute_aux_loss)
                    if images
                    else super()._get_per_token_logps_and_entropies(
                        model, ids_bL, mask_bL, logits_to_keep, None, compute_entropy, compute_aux_loss
                    )
                )
            parts.append(part)
        logp_BT = torch.cat([part[0] for part in parts])
        entropy_BT = torch.cat([part[1] for part in parts if part[1] is not None]) if compute_entropy else None
        aux = torch.stack([part[2] for part in parts if part[2] is not None]).mean() if compute_aux_loss else None
        self._last_logp_BT: torch.Tensor = logp_BT.detach()
        return logp_BT, entropy_BT, aux

    def _with_images(
        self,
        model: Any,
        ids_bL: torch.Tensor,
        mask_bL: torch.Tensor,
        logits_to_keep: int,
        images: dict[str, torch.Tensor],
        compute_entropy: bool,
        compute_aux_loss: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The same for a pass with images, whose tensors it gives to the model as they are: TRL would count InternVL's tiles as rows, and
        knows no ``batch_num_images``."""
        labels_bL = ids_bL.masked_fill(mask_bL == 0, -100)
        labels_bL[:, :-logits_to_keep] = -100
        extra = {"output_router_logits": True} if compute_aux_loss else {}
        output = model(input_ids=ids_bL, attention_mask=mask_bL, labels=labels_bL, fused_lm_head=True, **images, **extra)
        entropy_bT = output.entropy[:, -logits_to_keep:] if compute_entropy else None  # a reference's head gives none
        return output.log_probs[:, -logits_to_keep:], entropy_bT, output.aux_loss if compute_aux_loss else None

    # ------------------------------------------------------------ loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss of one pass: ours, or TRL's from our advantages and our mask."""
        self._passed = [self._kept[place] for place in inputs["place"].tolist()]
        self._note(ADVANTAGES, float((inputs["advantages"] != 0).float().mean()))
        if isinstance(self.loss, TrlLoss):
            weighted = {"advantages": inputs["advantages"][:, None] * inputs[RATIO]} if RATIO in inputs else {}
            loss = super().compute_loss(model, inputs | weighted | {"tool_mask": inputs["loss_mask"]})
        else:
            loss = self._policy_loss(model, inputs)
        assert self.scored is not None
        if OLD in self.scored and OLD not in inputs:
            self.scored[OLD][inputs["place"]] = self._last_logp_BT
        if torch.isfinite(loss):  # otherwise the update is skipped, and counted
            self._check_engine(inputs)
        return loss

    def _policy_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """A registered loss on replies that have a reward, the KL to the reference where it counts, and the auxiliary loss of a mixture
        of experts."""
        mask_BT = inputs["loss_mask"]
        rewarded_B1 = torch.tensor([[self.run.rewarded([trajectory])] for trajectory in self._passed], device=mask_BT.device)
        counts_B1 = torch.tensor([[counts] for counts in self._kl_counts()], device=mask_BT.device)
        logp_BT, entropy_BT, router_loss = self._logps(model, inputs, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled)
        old_logp_BT = inputs.get(OLD)
        old_logp_BT = logp_BT.detach() if old_logp_BT is None else old_logp_BT
        denominator_B = inputs["group_tokens"].clamp(min=1) * self.config.own_prompts_per_step
        loss = 0.0 * logp_BT.sum()  # with a gradient, which processes wait for where a pass of theirs has no reward and no KL
        if rewarded_B1.any():
            advantage_B, ratio_BT = inputs["advantages"], inputs.get(RATIO)
            judged = LossInput(logp_BT, old_logp_BT, entropy_BT, mask_BT * rewarded_B1, advantage_B, denominator_B, ratio_BT)
            loss, numbers = self.loss(judged)
            for name, value in numbers.items():
                self._note(name, float(value))
        self._note("entropy", float((entropy_BT.detach() * mask_BT).sum() / mask_BT.sum().clamp(min=1)))
        if self.run.unrewarded:
            self._note(DISTILLED, float((~rewarded_B1).float().mean()))
        if self.beta and counts_B1.any():
            reference_BT, kl_mask_BT = inputs["ref_per_token_logps"], mask_BT * counts_B1
            kl = partial(reference_kl, mask_BT=kl_mask_BT, estimator=self.config.kl.estimator)
            loss = loss + self.beta * kl(logp_BT, reference_BT, denominator_B=denominator_B)
            tokens = kl_mask_BT.sum().clamp(min=1)
            self._note("kl", float(kl(logp_BT.detach(), reference_BT, denominator_B=tokens.expand(len(mask_BT)))))
        if router_loss is not None:  # of a mixture of experts: keeps its tokens spread, as in pretraining
            loss = loss + self.router_aux_loss_coef * router_loss / self.current_gradient_accumulation_steps
            self._note("aux_loss", float(router_loss.detach()))
        return loss

    def _check_engine(self, inputs: dict[str, Any]) -> None:
        """Measures the difference between the sampled log-probabilities and the trainer's own for the same tokens and the same weights."""
        own_BT = inputs.get(OLD)
        own_BT = self._last_logp_BT if own_BT is None else own_BT
        mask_BT = inputs["loss_mask"].bool()
        within = self.state.global_step % self.config.rollout_steps
        if within == 0 and mask_BT.any():  # no update has been made since sampling
            self._note("engine/first_log_ratio", float((self._last_logp_BT - own_BT)[mask_BT].abs().max()))
        difference = (own_BT - inputs["sampling_per_token_logps"])[mask_BT].abs()
        gap = float(difference.mean()) if difference.numel() else 0.0
        self._note("engine/logprob_gap", gap)
        limit = gap_limit(self.config.max_logprob_gap, self.first_gap, in_bf16=self.args.bf16)
        if not gap <= limit:  # also where the gap is NaN: that is not a small one
            first = "" if self.first_gap is None else f"; the first step's gap was {self.first_gap:.2g}"
            raise GateFailed(
                f"the sampled log-probabilities are {gap:#.4g} nats per token away from the trainer's",
                f"at most {limit:.2g} is allowed (max_logprob_gap){first}: the engine that samples is not the policy that is trained",
                "check dtype and engine; max_logprob_gap=… allows more",
            )
        if self.first_gap is None:
            self.first_gap = gap

    # ------------------------------------------------------------ numbers

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the measures of the rollout to the numbers of its first update; numbers of passes are those of all processes."""
        self._gather_notes()
        if self._unreported is not None:
            first_step, batch = self._unreported
            self._unreported = None
            self.state.num_input_tokens_seen += sum(len(t.prompt_ids) + t.length for t in flat(batch.kept))
            measures = step_measures(batch, self.run.rows, self.run.unrewarded) | batch.numbers
            measures["num_tokens"] = float(self.state.num_input_tokens_seen)
            for name, value in measures.items():
                self._metrics["train"][name] = [value]
            if self.work.world.first and batch.number % math.ceil(self.config.sample_steps / self.config.rollout_steps) == 0:
                self.samples.add(first_step, self.run.rows, flat(batch.drawn))
        super().log(logs, start_time)

    def _gather_notes(self) -> None:
        """Joins the numbers that the processes have noted since the last log; a number may be missing in one that had no such reply."""
        if self.work.world.size > 1:
            notes: dict[str, list[float]] = {}
            for own in gathered(self.work.world, [{name: list(values) for name, values in self._metrics["train"].items()}]):
                for name, values in own.items():
                    notes.setdefault(name, []).extend(values)
            self._metrics["train"].clear()
            self._metrics["train"].update(notes)

    def _note(self, name: str, value: float) -> None:
        """Records a number of one pass; the step's is the mean over its passes."""
        self._metrics["train"][name].append(value)


def no_reward(**_: Any) -> list[float | None]:
    """TRL's constructor requires a reward function; rewards come from ``step``."""
    raise AssertionError("TRL's rewards are not used")


__all__ = ["LadderTrainer"]
