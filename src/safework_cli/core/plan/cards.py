"""Memory and speed of accelerators, by name. Speeds are peaks without sparsity; what training reaches of them is ``duration.REACHED``.

Sources of the speeds are the makers' data sheets: NVIDIA's for T4, V100 (SXM2), A10, A100 (SXM), A40, L4, L40S, RTX A6000, H100, H200 and
B200 (HGX); NVIDIA's Ampere (GA102) and Ada architecture papers for RTX 3090 and 4090 (half precision with float32 sums); AMD's for MI250X
(one of its two dies, products) and MI300X. "float32" is without TF32, which torch leaves off.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from safework_cli.core.errors import ConfigError, nearest

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Card:
    """One accelerator.

    Attributes:
        gib: memory, as the driver shows it: less than the name says where error correction takes a part.
        half, single: peak products in bfloat16 (float16 where it has none) and float32, in 10¹² operations a second.
        bandwidth: of the memory, in 10⁹ bytes a second.
        bf16: whether it multiplies in bfloat16.
    """

    name: str
    gib: float
    half: float
    single: float
    bandwidth: float
    bf16: bool = True


CARDS = {
    "t4": Card("NVIDIA T4", 15, 65, 8.1, 300, bf16=False),
    "v100-16gb": Card("NVIDIA V100 16 GB", 15.8, 125, 15.7, 900, bf16=False),
    "v100": Card("NVIDIA V100 32 GB", 31.7, 125, 15.7, 900, bf16=False),
    "rtx3090": Card("NVIDIA RTX 3090", 24, 71, 35.6, 936),
    "rtx4090": Card("NVIDIA RTX 4090", 24, 165, 82.6, 1008),
    "a10": Card("NVIDIA A10", 22.5, 125, 31.2, 600),
    "a40": Card("NVIDIA A40", 45, 150, 37.4, 696),
    "a6000": Card("NVIDIA RTX A6000", 48, 155, 38.7, 768),
    "l4": Card("NVIDIA L4", 22.5, 121, 30.3, 300),
    "l40s": Card("NVIDIA L40S", 45, 362, 91.6, 864),
    "a100-40gb": Card("NVIDIA A100 40 GB", 40, 312, 19.5, 1555),
    "a100": Card("NVIDIA A100 80 GB", 80, 312, 19.5, 2039),
    "h100-pcie": Card("NVIDIA H100 PCIe", 79.6, 756, 51, 2000),
    "h100": Card("NVIDIA H100 SXM", 79.6, 989, 67, 3350),
    "h200": Card("NVIDIA H200 SXM", 140.4, 989, 67, 4800),
    "b200": Card("NVIDIA B200", 179, 2250, 75, 7700),
    "mi250x": Card("AMD Instinct MI250X (one die)", 64, 191.5, 47.9, 1638),
    "mi300x": Card("AMD Instinct MI300X", 192, 1307, 163, 5300),
}
"""By the name that ``launch.device`` takes."""


def card_named(name: str) -> Card:
    """The card that a setting names. Raises ConfigError where it is unknown."""
    if name.lower() not in CARDS:
        raise ConfigError(
            f"launch.device={name} is unknown{nearest(name, [*CARDS, 'cpu'])}",
            "the plan knows memory and speed of " + ", ".join(CARDS),
            "name the nearest of them; launch.device=cpu for this machine's own cores",
        )
    return CARDS[name.lower()]


def card_like(text: str, gib: float | None = None) -> Card | None:
    """The card that a driver or a Slurm type means ("NVIDIA A100-SXM4-40GB", "a100_80gb", "h100"); None where the table has none.

    Args:
        gib: its memory, where that is known: two sizes of a card may have one name.
    """
    words = set(re.findall(r"[a-z]+\d+[a-z]*|\d+gb|pcie", re.sub(r"rtx\s+(?=\d)", "rtx", text.lower())))
    fitting = [card for key, card in CARDS.items() if key.split("-")[0] in words]
    if not fitting:
        return None
    if gib is None:
        gib = next((float(word.removesuffix("gb")) for word in words if word.endswith("gb")), None)
    if gib is not None:
        least = min(abs(card.gib - gib) for card in fitting)
        fitting = [card for card in fitting if abs(card.gib - gib) == least]
    pcie = [card for card in fitting if ("PCIe" in card.name) == ("pcie" in words)]
    return (pcie or fitting)[-1]
