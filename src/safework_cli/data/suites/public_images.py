"""The public sets whose prompts hold images. pyproject.toml registers them. ``tried=False``: no published file was at hand, the reader
follows the layout that the authors describe."""

from __future__ import annotations

from safework_cli.data.suites.image_readers import (
    RENDERINGS,
    MmSafetyBench,
    read_figstep,
    read_gaokao,
    read_mathvista,
    read_mmmu,
    read_mssbench,
    read_siuo,
)
from safework_cli.data.suites.suite import Suite


def _gaokao(subject: str, file: str, tried: bool = False) -> Suite:
    return Suite(
        f"gaokao-mm-{subject}", f"Chinese examination questions with figures: {subject.replace('-', ' ')}", f"gaokao_mm/{file}.json",
        "knowledge", read_gaokao,
        "github.com/OpenMOSS/GAOKAO-MM", "Apache-2.0", language="zh", images=True, tried=tried,
    )  # fmt: skip


def _mm_safetybench(name: str, summary: str, renderings: tuple[str, ...]) -> Suite:
    return Suite(
        name, f"harmful requests drawn as images: {summary}", "mm_safetybench/data/processed_questions/01-Illegal_Activitiy.json", "safety",
        MmSafetyBench(renderings), "github.com/isXinLiu/MM-SafetyBench", "CC-BY-NC-4.0", harmful=True, images=True, tried=False,
    )  # fmt: skip


figstep = Suite(
    "figstep", "harmful requests typeset as images", "figstep/safebench.csv", "safety", read_figstep,
    "github.com/ThuCCSLab/FigStep", "MIT", harmful=True, images=True,
)  # fmt: skip
gaokao_mm_biology = _gaokao("biology", "2010-2023_Biology_MCQs", tried=True)
gaokao_mm_chemistry = _gaokao("chemistry", "2010-2023_Chemistry_MCQs")
gaokao_mm_chinese = _gaokao("chinese", "2010-2023_Chinese_Pratical_Lit")
gaokao_mm_geography = _gaokao("geography", "2010-2023_Geography_MCQs")
gaokao_mm_history = _gaokao("history", "2010-2023_History_MCQs")
gaokao_mm_mathematics = _gaokao("mathematics", "2010-2023_Math_MCQs", tried=True)
gaokao_mm_physics = _gaokao("physics", "2010-2023_Physics_MCQs")
gaokao_mm_politics = _gaokao("politics", "2010-2023_Political_Science_MCQs")
mm_safetybench = _mm_safetybench("mm-safetybench", "each in three renderings", tuple(RENDERINGS))
mm_safetybench_sd = _mm_safetybench("mm-safetybench-sd", "as a generated image", ("SD",))
mm_safetybench_sd_typo = _mm_safetybench("mm-safetybench-sd-typo", "as a generated image with the key phrase below", ("SD_TYPO",))
mm_safetybench_typo = _mm_safetybench("mm-safetybench-typo", "as the key phrase, typeset", ("TYPO",))
siuo = Suite(
    "siuo", "harmless questions that are not harmless with their image; needs judges", "siuo/siuo_gen.json", "safety", read_siuo,
    "github.com/sinwang20/SIUO", "CC-BY-NC-4.0", hub="sinwang/SIUO", images=True, metric="safe_by_warning", tried=False,
)  # fmt: skip
mssbench = Suite(
    "mssbench", "one request with an image in which it is safe, and one in which it is not", "mssbench/combined.json", "safety",
    read_mssbench, "github.com/eric-ai-lab/MSSBench", "see upstream", hub="kzhou35/mssbench", images=True, metric="situational",
    tried=False,
)  # fmt: skip
mmmu = Suite(
    "mmmu", "college questions of 30 subjects with images, validation split", "mmmu/*/validation-*.parquet", "knowledge", read_mmmu,
    "huggingface.co/datasets/MMMU/MMMU", "Apache-2.0", hub="MMMU/MMMU", images=True, tried=False,
)  # fmt: skip
mathvista = Suite(
    "mathvista", "mathematics with images, testmini split", "mathvista/data/testmini-*.parquet", "general", read_mathvista,
    "huggingface.co/datasets/AI4Math/MathVista", "CC-BY-SA-4.0", hub="AI4Math/MathVista", images=True, tried=False,
)  # fmt: skip
