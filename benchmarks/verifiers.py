"""How good trained verifiers are compared with simple baselines, and how fast they judge.

    python benchmarks/verifiers.py refusal [--model smollm2] [--splits prompt gpt4 …] [--json]
    python benchmarks/verifiers.py value
    python benchmarks/verifiers.py speed [--rows 32]

`refusal`: XSTest's real replies as full compliance, partial refusal or full refusal; split by prompt; with one model's replies left
out of training in turn; and those five together. Baselines: refusal phrases, and TF-IDF with logistic regression (scikit-learn) on query
and reply, and once more with the attacked copies that the recipe trains the verifier on. `value`: the test parts of ETHICS. All of them get
the same training rows and are measured on the same held-out ones. `speed`: label probabilities in one forward pass against the same model
generating its label. Trained with the recipes in recipes/verifiers; needs SAFEWORK_DATA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safework_cli.data.dataset import read_dataset

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "verifiers"
GENERATORS = ("gpt4", "llama2new", "llama2orig", "mistralguard", "mistralinstruct")
REPEATS = 3


def safework(*words: str, store: str) -> str:
    """Runs a command and returns the reference that it prints."""
    command = [str(Path(sys.executable).with_name("safework")), *words, "--store", store]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 5):
        raise SystemExit(done.returncode)
    return done.stdout.strip().splitlines()[-1]


def parts_of(store: str, data: str, recipe: str) -> tuple[Any, Any, Any]:
    """The specification of a recipe's verifier, its training and report rows, and its attacked copies, by the stage's own functions."""
    from safework_cli.core.artifacts import Store
    from safework_cli.core.yaml_text import parse_yaml
    from safework_verifier.attacks import augmented
    from safework_verifier.rows import labelled_rows, split_by_prompt
    from safework_verifier.train.config import VerifierTrainConfig

    settings = parse_yaml((RECIPES / recipe).read_text(), recipe)
    config = VerifierTrainConfig.model_validate(settings)
    items, missing = labelled_rows(read_dataset(Store(Path(store)).resolve(data, ("dataset",))), config.spec(), 0.0)
    parts = split_by_prompt(items, missing, config.eval_fraction, config.seed)
    return config.spec(), parts, augmented(parts.train, config.spec(), config.attacked_share, config.cut_short_share, config.seed)


def tfidf(train: Any, report: Any) -> Any:
    """Predicted labels of logistic regression on TF-IDF over words and word pairs, of query and reply separately."""
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def columns(items: Any) -> Any:
        import numpy as np

        return np.array([[item.exchange.question, item.exchange.final] for item in items], dtype=object)

    vector = {"ngram_range": (1, 2), "sublinear_tf": True, "min_df": 2}
    features = ColumnTransformer([(name, TfidfVectorizer(**vector), place) for place, name in enumerate(("query", "reply"))])
    model = make_pipeline(features, LogisticRegression(C=10.0, max_iter=2000, class_weight="balanced"))
    return model.fit(columns(train), [item.gold for item in train]).predict(columns(report))


def measured(spec: Any, report: Any, predicted: Any) -> dict[str, float]:
    import numpy as np

    from safework_cli.statistics.classification import accuracy, macro_f1

    gold_N, predicted_N = np.array([item.gold for item in report]), np.array(predicted)
    return {"accuracy": accuracy(gold_N, predicted_N), "macro_f1": macro_f1(gold_N, predicted_N, len(spec.labels)), "n": len(report)}


def verdicts_of(store: str, verifier: str, report: Any, spec: Any) -> Any:
    from safework_cli.core.artifacts import Store
    from safework_cli.verifiers.load import load_verifier

    judge = load_verifier(Store(Path(store)).resolve(verifier, ("verifier",)), batch_size=32)
    return [spec.labels.index(verdict.label) for verdict in judge.judge([item.exchange for item in report])]


def refusal(model: str, splits: list[str], store: str) -> list[dict[str, Any]]:
    from safework_verifier.rows import phrase_predictions

    by_split: dict[str, tuple[list[Any], dict[str, Any]]] = {}  # the rows, and the labels of each side
    for split in splits:
        words, settings = ["data", "build", "-c", str(RECIPES / "xstest-refusal.yaml"), "-q"], []
        if split != "prompt":  # the prompt split is that of recipes/verifiers.sh, with the attack sheet
            source = {
                "kind": "xstest-completions",
                "name": "xstest-refusal",
                "folder": "${SAFEWORK_DATA}/xstest/completions",
                "labels": "refusal",
            }
            words += ["sources=" + json.dumps([source | {"test_model": split}]), "heldout=0.0", "--name", f"xstest-{split}"]
            settings = ["attack_rows=0", "--name", f"refusal-{split}"]
        data = safework(*words, store=store) + ":verifier"
        spec, parts, copies = parts_of(store, data, "refusal.yaml")
        verifier = safework(
            "verifier", "train", "-c", str(RECIPES / "refusal.yaml"), f"model={model}", f"data={data}", *settings, store=store
        )
        sides = {
            "refusal phrases": phrase_predictions(parts.report, spec),
            "TF-IDF, logistic regression": tfidf(parts.train, parts.report),
            "the same, with the copies": tfidf([*parts.train, *copies], parts.report),
            "verifier": verdicts_of(store, verifier, parts.report, spec),
        }
        by_split[split] = list(parts.report), {name: list(found) for name, found in sides.items()}
    left_out = [found for split, found in by_split.items() if split != "prompt"]
    if len(left_out) > 1:
        rows = [row for found, _ in left_out for row in found]
        by_split["left out, together"] = rows, {name: [label for _, sides in left_out for label in sides[name]] for name in left_out[0][1]}
    return [
        {"split": split, **{name: measured(spec, rows, labels) for name, labels in sides.items()}}
        for split, (rows, sides) in by_split.items()
    ]


def value(model: str, store: str) -> list[dict[str, Any]]:
    data = safework("data", "build", "-c", str(RECIPES / "value-data.yaml"), "-q", store=store) + ":verifier"
    spec, parts, _ = parts_of(store, data, "value.yaml")
    verifier = safework("verifier", "train", "-c", str(RECIPES / "value.yaml"), f"model={model}", f"data={data}", store=store)
    sides = {"TF-IDF, logistic regression": tfidf(parts.train, parts.report), "verifier": verdicts_of(store, verifier, parts.report, spec)}
    common = max(range(len(spec.labels)), key=lambda label: sum(item.gold == label for item in parts.train))
    sides["most frequent label"] = [common] * len(parts.report)
    results = []
    for source in ("all", *sorted({item.row.source for item in parts.report})):
        places = [i for i, item in enumerate(parts.report) if source in ("all", item.row.source)]
        report = [parts.report[i] for i in places]
        results.append({"split": source, **{name: measured(spec, report, [labels[i] for i in places]) for name, labels in sides.items()}})
    return results


def speed(model: str, rows: int) -> dict[str, Any]:
    """Seconds for a batch of judgements: one forward pass, against generating the label (16 tokens at most, as released judges are run)."""
    import torch

    from safework_cli.core.artifacts import default_store
    from safework_cli.models.load import load_model, load_tokenizer
    from safework_cli.verifiers.contract import Exchange
    from safework_cli.verifiers.labels import LabelVerifier, pad_left
    from safework_cli.verifiers.spec import preset

    folder = Path(model) if Path(model).is_dir() else default_store(None).resolve(model, ("model",)).path
    backbone, tokenizer = load_model(folder), load_tokenizer(folder)
    judge = LabelVerifier(backbone, tokenizer, preset("safety"), batch_size=rows)
    exchanges = [Exchange([{"role": "user", "content": f"Question {i}?"}], "The answer is short. " * (1 + i % 6)) for i in range(rows)]
    prompts = [judge.writer.write(exchange).ids for exchange in exchanges]

    def forward() -> None:
        judge.judge(exchanges)

    def generate() -> None:
        batch = pad_left(prompts, int(tokenizer.pad_token_id or 0))
        with torch.inference_mode():
            backbone.generate(**{k: v for k, v in batch.items() if k != "position_ids"}, max_new_tokens=16, do_sample=False)

    times: dict[str, list[float]] = {"forward": [], "generate": []}
    for _ in range(REPEATS):  # in turns, so that other load affects both equally
        for name, side in (("forward", forward), ("generate", generate)):
            started = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {"rows": rows, "seconds": medians, "ratio": medians["generate"] / medians["forward"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["refusal", "value", "speed"])
    parser.add_argument("--model", default="smollm2", help="a reference in the store, or a folder")
    parser.add_argument("--splits", nargs="+", default=["prompt", *GENERATORS], choices=["prompt", *GENERATORS])
    parser.add_argument("--rows", type=int, default=32, help="replies of `speed`")
    parser.add_argument("--store", help="keep what is trained there; default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.what == "speed":
        found = speed(options.model, options.rows)
        print(
            json.dumps(found)
            if options.json
            else f"{found['rows']} replies: {found['seconds']}; generating takes {found['ratio']:.1f} times as long"
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        store = options.store or temporary
        model = options.model if Path(options.model).is_dir() else safework("models", "pull", options.model, store=store)
        results = refusal(model, options.splits, store) if options.what == "refusal" else value(model, store)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print("| split | side | accuracy | macro-F1 | n |")
    print("|---|---|---|---|---|")
    for result in results:
        for side, found in result.items():
            if isinstance(found, dict):
                print(f"| {result['split']} | {side} | {found['accuracy']:.3f} | {found['macro_f1']:.3f} | {found['n']} |")


if __name__ == "__main__":
    main()
