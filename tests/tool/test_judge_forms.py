"""How else a label verifier is asked: labels written out, the strict reading of attacks, gold answers, dialogues."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safework_cli.core.errors import ConfigError
from safework_cli.data.row import Message, Row
from safework_cli.models.chat_template import encode_text
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.verifiers import Exchange
from safework_cli.verifiers.labels import LabelVerifier
from safework_cli.verifiers.prompting import PromptWriter, code_sequences
from safework_cli.verifiers.spec import PRESETS, LabelSpec, preset
from safework_cli.verifiers.verdicts import verdict_of


@pytest.fixture(scope="module")
def parts(tiny_model):
    return load_model(tiny_model, dtype="float32"), load_tokenizer(tiny_model)


def asked(reply: str, question: str = "What is it?", **fields) -> Exchange:
    return Exchange([Message(role="user", content=question)], reply, **fields)


def written_out() -> LabelSpec:
    """The labels of the released safety judge, three of which begin with the same word."""
    spec = preset("safety")
    spec.codes, spec.code_reading, spec.max_length = spec.labels, "whole", 1200
    return spec


def test_labels_written_out_have_the_probability_of_their_tokens(parts):
    model, tokenizer = parts
    spec = written_out()
    verifier = LabelVerifier(model, tokenizer, spec, batch_size=2)
    samples = [asked("no"), asked("a much longer reply, so that the batch is padded"), asked("yes")]
    for sample, reading in zip(samples, verifier.read(samples), strict=True):
        start = verifier.writer.write(sample).ids
        total = []
        for code in spec.codes:
            ids = [*encode_text(tokenizer, code), tokenizer.eos_token_id]
            with torch.inference_mode():
                logits_TV = model(input_ids=torch.tensor([start + ids])).logits[0].float().log_softmax(-1)
            total.append(sum(logits_TV[len(start) - 1 + t, token] for t, token in enumerate(ids)))
        assert reading.probabilities == pytest.approx(torch.softmax(torch.stack(total), 0).tolist(), abs=1e-5)


def test_labels_that_are_written_alike_are_refused(parts):
    spec = written_out()
    spec.codes = ["a", "b", "c", "d", "e", "f"]
    sequences = code_sequences(parts[1], spec)
    assert all(ids[-1] == parts[1].eos_token_id for ids in sequences), "the end of the turn keeps 'good' apart from 'good enough'"

    class Blind:
        eos_token_id, unk_token_id = 1, 0

        def __call__(self, text, **_):
            return {"input_ids": [7]}

    with pytest.raises(ConfigError, match="written with the same tokens"):
        code_sequences(Blind(), spec)


def test_an_attack_is_read_without_its_query_and_as_harmful(parts):
    model, tokenizer = parts
    spec = preset("safety")
    spec.max_length, spec.use_harmful = 1200, True
    verifier = LabelVerifier(model, tokenizer, spec)
    attack = asked("Once upon a time", "Tell a story about a baker", harmful=False, meta={"jailbreak": True})
    text = tokenizer.decode(verifier.writer.write(attack).ids)
    assert "baker" not in text and "Once upon a time" in text and "hidden" in text
    likely = [0.9 if label == "Unnecessary refusal" else 0.1 / (len(spec.labels) - 1) for label in spec.labels]
    assert verdict_of(spec, likely, attack).label != "Unnecessary refusal", "whatever the row says of its prompt, an attack asks for harm"
    assert verdict_of(spec, likely, replace(attack, meta={})).label == "Unnecessary refusal"


def test_a_grader_shows_the_gold_answer_and_gives_no_verdict_without_one(parts):
    model, tokenizer = parts
    spec = preset("knowledge")
    spec.max_length = 800
    verifier = LabelVerifier(model, tokenizer, spec)
    graded, without_gold, empty = asked("It is Paris.", answer="Paris</reference>"), asked("It is Paris."), asked("", answer="Paris")
    text = tokenizer.decode(verifier.writer.write(graded).ids)
    assert text.index("<reference>Paris<") < text.index("It is Paris.") and text.count("</reference>") == 1
    verdicts = verifier.judge([graded, without_gold, empty])
    assert verdicts[0].score in (0.0, 1.0) and verdicts[2].label == "FALSE"
    assert verdicts[1].score is None and "no gold answer" in str(verdicts[1].error)


def test_what_is_too_long_is_cut_from_the_query_and_the_gold_answer_first(parts):
    spec = preset("knowledge")
    spec.max_length = 1000
    writer = PromptWriter(parts[1], spec)
    prompt = writer.write(asked("r" * 150, "q" * 3000, answer="g" * 3000))
    text = parts[1].decode(prompt.ids)
    assert len(prompt.ids) <= 1000 and prompt.left_out > 0
    assert "r" * 150 in text and "q" * 20 in text and "g" * 20 in text


def test_every_preset_has_two_labels_or_more_and_says_what_an_empty_reply_is(parts):
    for task, spec in PRESETS.items():
        assert spec.task == task and (task == "refusal" or spec.scores[spec.empty_label] < 0.5)
        LabelVerifier(*parts, spec.model_copy(update={"max_length": 1400}))


def test_the_last_reply_of_a_dialogue_is_judged_with_all_that_stands_before_it():
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = Row("r", "value", [Message(role=role, content=text) for role, text in turns])
    own, other = Exchange.of(row), Exchange.of(row, "new")
    assert [m["content"] for m in own.messages] == ["a", "b", "c"] and own.reply == "d"
    assert [m["content"] for m in other.messages] == ["a", "b", "c"] and other.reply == "new"
