"""What the KL of ``beta`` compares with, and on the replies to which prompts it counts. Torch-free when it is imported.

With ``reference`` given, samples of the policy and their log-probabilities under another model are on-policy distillation (GKD, arXiv
2306.13649). ``kl.estimator: k2`` then gives the reverse KL's gradient; a task whose route is empty has no reward, and this KL only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from safework_cli.core.artifacts import Artifact
from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs, Plan, Slot
from safework_cli.data.row import Row
from safework_rl.config import KlSettings, RlConfig
from safework_rl.losses.trl import TrlLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REFERENCE_SLOT = Slot(
    ("model",), "what beta compares with, such as the base model (default: the model that training starts from)", optional=True
)


def without_reward(routes: Mapping[str, Mapping[str, float]], tasks: Iterable[str]) -> frozenset[str]:
    """The tasks whose route was given and is empty."""
    return frozenset(task for task in tasks if task in routes and not routes[task])


def kl_counts(row: Row, kl: KlSettings, *, other: bool) -> bool:
    """Whether the KL counts on replies to a row. A row of the task safety that is not marked as harmless is taken as harmful.

    Args:
        other: the reference is another model than the one that training starts from.
    """
    harmful = row.harmful if row.harmful is not None else row.task == "safety"
    with_harmful = not other if kl.harmful is None else kl.harmful
    return (kl.tasks is None or row.task in kl.tasks) and (with_harmful or not harmful)


def plan_reference(
    plan: Plan, config: RlConfig, inputs: Inputs, tasks: set[str], routes: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Adds to the plan what the KL compares with, and a refusal where the settings ask for something that would not happen.

    Args:
        tasks: that are drawn.
        routes: of the rewards; None where the stage has a reward of its own.
    """
    reference, unrewarded = inputs.maybe("reference"), without_reward(routes or {}, tasks)
    needed_by = [f"reference={reference.ref}"] if reference else []
    needed_by += [f"rewards.{task}={{}}" for task in sorted(unrewarded)]
    if needed_by and not config.beta:
        plan.refuse(
            f"{' and '.join(needed_by)} {'needs' if len(needed_by) == 1 else 'need'} the KL to the reference, and beta is 0",
            "nothing would be compared with the reference, and replies without a reward would train nothing",
            "set beta, such as beta=0.1",
        )
    if needed_by and isinstance(config.policy_loss, TrlLoss):
        plan.refuse(
            f"{' and '.join(needed_by)}: not with algorithm={config.algorithm}",
            "TRL's losses add their own KL, of every reply to the starting model",
            "take algorithm=cpgd",
        )
    if reference and reference.digest == inputs.one("model").digest:
        plan.refuse(
            f"reference={reference.ref} is the model that training starts from",
            "beta compares with that one in any case",
            "leave reference out, or name another model",
        )
    if unrewarded == tasks and not reference:
        plan.refuse(
            "no task has a reward, and beta compares with the starting model",
            "a model does not differ from itself: nothing would be learnt",
            "name another model: reference=REF",
        )
    if config.beta and config.kl.tasks is not None:
        idle = sorted(tasks if not tasks & set(config.kl.tasks) else unrewarded - set(config.kl.tasks))
        if idle:
            plan.refuse(
                f"kl.tasks leaves out {', '.join(idle)}",
                "these tasks have no reward either" if unrewarded & set(idle) else "the KL would count on none of the tasks that are drawn",
                "add them to kl.tasks, or remove kl.tasks",
            )
    if config.beta:
        named = ", ".join(sorted(tasks if config.kl.tasks is None else tasks & set(config.kl.tasks)))
        left_out = config.kl.harmful is False or (reference is not None and not config.kl.harmful)
        plan.lines.append(
            f"KL to {reference.ref if reference else 'the starting model'}: weight {config.beta:g}, {config.kl.estimator}, tasks {named}"
            + (", harmful prompts left out" if left_out else "")
        )
    if unrewarded:
        plan.lines.append(f"no reward for {', '.join(sorted(unrewarded))}: only the KL trains on these replies")


def refuse_other_model(
    reference: Artifact, policy: Artifact, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row], *, trust_remote_code: bool
) -> None:
    """Refuses a reference that cannot be compared with the policy.

    Args:
        tokenizer: of the policy, whose token ids the reference reads.
        rows: that are trained on.

    Raises:
        InputError: the two models have other tokens, or the reference cannot read the rows' images.
    """
    from safework_cli.models.folder import has_vision, read_config
    from safework_cli.models.load import load_tokenizer

    own, other = tokenizer.get_vocab(), load_tokenizer(reference.path, trust_remote_code=trust_remote_code).get_vocab()
    if own != other:
        first = min((token for token in own.keys() | other.keys() if own.get(token) != other.get(token)), key=lambda t: (len(t), t))
        numbers = " and ".join("none" if number is None else str(number) for number in (own.get(first), other.get(first)))
        raise InputError(
            f"{policy.ref} and the reference {reference.ref} have different tokens ({len(own)} and {len(other)}; "
            f"{first!r} has the numbers {numbers})",
            "log-probabilities of one token under two models can be compared only where it is the same token",
            "take a reference with the same tokenizer, such as the base that the model was trained from",
        )
    if any(row.images for row in rows) and not has_vision(read_config(reference.path, trust_remote_code=trust_remote_code)):
        raise InputError(
            f"the rows have images, and the reference {reference.ref} reads text only",
            "its log-probabilities would be those of another prompt",
            "take a reference with a vision tower, or rows without images",
        )


def as_reference(model: PreTrainedModel) -> PreTrainedModel:
    """A model that is only compared with."""
    from safework_cli.models.layers import disable_dropout

    disable_dropout(model)
    return model.requires_grad_(False)
