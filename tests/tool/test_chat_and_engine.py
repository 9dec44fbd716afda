"""Tokens in training are the tokens that generation sees; completions carry their own log-probabilities."""

from __future__ import annotations

import pytest
import torch

from safework_cli.core.errors import InputError
from safework_cli.data.reply import language_of, make_reply, parse_reply
from safework_cli.engines.hf.engine import HFEngine
from safework_cli.engines.protocol import Sampling
from safework_cli.models.chat_template import encode_conversation, encode_prompt, observation_ids
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.rendering import TemplateError

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "<think>so</think>yes"}
AGAIN = {"role": "user", "content": "and?"}


@pytest.fixture(scope="module")
def engine(tiny_model):
    torch.manual_seed(0)
    return HFEngine(load_model(tiny_model, dtype="float32"), load_tokenizer(tiny_model), batch_size=3)  # bfloat16 rounds by the batch


def supervised_text(tokenizer, encoded) -> str:
    return tokenizer.decode([i for i, s in zip(encoded.input_ids, encoded.supervised, strict=True) if s])


def test_exactly_the_replies_and_their_stop_tokens_are_supervised(engine):
    encoded = encode_conversation(engine.tokenizer, [USER, REPLY, AGAIN, {"role": "assistant", "content": "no"}], engine.stop_ids)
    assert supervised_text(engine.tokenizer, encoded) == "<think>so</think>yes<|im_end|>no<|im_end|>"
    assert engine.tokenizer.decode(encoded.input_ids).count("<|im_start|>") == 4


def test_the_prompt_of_training_is_the_prompt_of_generation(engine):
    encoded = encode_conversation(engine.tokenizer, [USER, REPLY], engine.stop_ids)
    prompt = encode_prompt(engine.tokenizer, [USER]).ids
    assert (
        encoded.input_ids[: len(prompt)] == prompt and not any(encoded.supervised[: len(prompt)]) and all(encoded.supervised[len(prompt) :])
    )


def test_an_observation_joins_two_sampled_turns_as_the_template_would(engine):
    whole = encode_conversation(engine.tokenizer, [USER, REPLY, AGAIN, REPLY], engine.stop_ids).input_ids
    first = encode_conversation(engine.tokenizer, [USER, REPLY], engine.stop_ids).input_ids
    between = observation_ids(engine.tokenizer, [USER, REPLY, AGAIN], engine.stop_ids, stopped=True)
    assert whole[: len(first) + len(between)] == first + between
    unstopped = observation_ids(engine.tokenizer, [USER, REPLY, AGAIN], engine.stop_ids, stopped=False)
    assert unstopped == [engine.tokenizer.eos_token_id, *between]


def template(content: str, end: str) -> str:
    opening = "{% if add_generation_prompt %}[assistant]{% endif %}"
    return "{% for m in messages %}[{{ m['role'] }}]{{ " + content + " }}" + end + "{% endfor %}" + opening


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (template("m['content']", "[end]"), "without a stop token"),
        (template("m['content'] | upper", "<|im_end|>"), "changes or drops what an assistant says"),
        (template("m['content']", "<|im_end|>").split("{% if")[0], r"writes '\[assistant\]' before a reply"),
        ("{{ raise_exception('No system turns') }}", "refuses it: No system turns"),
    ],
)
def test_a_template_that_loses_something_is_refused(tiny_model, text, message):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = text
    with pytest.raises(TemplateError, match=message):
        encode_conversation(tokenizer, [USER, REPLY], [tokenizer.eos_token_id])


def test_a_template_that_drops_the_question_is_refused(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = "{% for m in messages %}USER: {{ m['content'] | length }}{% endfor %}ASSISTANT:"
    with pytest.raises(TemplateError, match="drops or changes what the user says"):
        encode_prompt(tokenizer, [USER])


def test_a_template_without_a_generation_prompt_is_refused(tiny_model, engine):
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = template("m['content']", "<|im_end|>").split("{% if")[0]
    with pytest.raises(InputError, match=r"no generation prompt: it ignores add_generation_prompt and never writes '\[assistant\]'"):
        HFEngine(engine.model, tokenizer)


def test_a_folder_without_a_chat_template_is_refused(tiny_model, tmp_path):
    import shutil

    shutil.copytree(tiny_model, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        load_tokenizer(tmp_path / "m")


def test_greedy_text_does_not_depend_on_the_batch(engine):
    prompts = [[{"role": "user", "content": text}] for text in ("a", "what is this?", "b c", "one more", "x")]
    together = engine.generate(prompts, Sampling(max_tokens=8))
    separate = [engine.generate([p], Sampling(max_tokens=8))[0] for p in prompts]
    assert [g[0].token_ids for g in together] == [g[0].token_ids for g in separate]


def test_logprobs_are_those_of_scoring_whatever_the_temperature(engine):
    prompts = [[USER], [AGAIN], [USER, {"role": "assistant", "content": "<think>"}]]
    groups = engine.generate(prompts, Sampling(max_tokens=10, temperature=0.6, top_p=0.9), n=2)
    scored = engine.score([p for p in prompts for _ in range(2)], [c.token_ids for g in groups for c in g])
    for completion, expected in zip([c for g in groups for c in g], scored, strict=True):
        assert completion.logprobs == pytest.approx(expected, abs=1e-5) and len(completion.logprobs) == len(completion.token_ids)


def test_scoring_takes_the_logits_of_completions_only_and_bounds_them(engine, monkeypatch):
    asked, replies = [[USER], [{"role": "user", "content": "x" * 300}], [AGAIN]], [[5, 6, 7], [8], [9, 10]]
    expected, logits = engine.score(asked, replies), []
    handle = engine.model.register_forward_hook(lambda *call: logits.append(tuple(call[-1].logits.shape[:2])))
    try:
        assert engine.score(asked[1:2], replies[1:2])[0] == pytest.approx(expected[1], abs=1e-5) and logits == [(1, 2)]
        monkeypatch.setattr("safework_cli.engines.hf.engine.SCORED_BYTES", 1)
        scored = engine.score(asked, replies)
    finally:
        handle.remove()
    assert sorted(logits[1:]) == [(1, 2), (1, 3), (1, 4)], "a pass for each"
    assert all(one == pytest.approx(other, abs=1e-5) for one, other in zip(scored, expected, strict=True))


def test_the_seed_decides_the_draw(engine):
    one, same, other = (engine.generate([[USER]], Sampling(max_tokens=12, temperature=1.0, seed=seed), n=2) for seed in (1, 1, 2))
    assert one == same != other


def test_a_stop_string_ends_the_completion_where_it_appeared(engine):
    free = engine.generate([[USER]], Sampling(max_tokens=24, temperature=1.0, seed=5))[0][0]
    stop = engine.tokenizer.decode(free.token_ids[3:4])
    cut = engine.generate([[USER]], Sampling(max_tokens=24, temperature=1.0, seed=5, stop=(stop,)))[0][0]
    assert cut.finish_reason == "stop" and len(cut.token_ids) <= 4 and cut.token_ids == free.token_ids[: len(cut.token_ids)]


def test_a_prompt_that_leaves_no_room_is_refused(engine):
    long = [{"role": "user", "content": "x" * 4090}]
    ((completion,),) = engine.generate([long], Sampling(max_tokens=64))
    assert completion.finish_reason == "too_long" and "exceed the model's 4096 positions" in completion.error
    with pytest.raises(InputError, match="exceed the model's 4096 positions"):
        engine.generate_ids([encode_prompt(engine.tokenizer, long).ids], Sampling(max_tokens=64))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think>b", ("a", "b", "ok")),
        ("a</think>b", ("a", "b", "unopened")),
        ("<think>a", ("a", "", "unclosed")),
        ("b", ("", "b", "no_thought")),
        ("<think> </think>b", ("", "b", "empty_thought")),
        ("<think>a</think> ", ("a", "", "empty_answer")),
        ("<think>a</think>x</think>b", ("a", "x</think>b", "repeated")),
        ("<think>a</think>x<think>b</think>c", ("a", "x<think>b</think>c", "repeated")),
        ("<think>a<think>b</think>c", ("a<think>b", "c", "repeated")),
        ("x<think>a</think>b", ("a", "x\nb", "text_before")),
        ("x<think>a", ("a", "x", "unclosed")),
        ("x<think>a</think>", ("a", "x", "text_before")),
        ("x</think>y<think>z</think>b", ("x", "y<think>z</think>b", "repeated")),
        ("\x00\x1b\u200b\u2066 \x85", ("", "", "empty_answer")),  # a user sees nothing
        ("<think>a</think>\u200b", ("a", "", "empty_answer")),
        ("<think>\ufeff</think>b", ("", "b", "empty_thought")),
        ("\x1b[31mNo.", ("", "\x1b[31mNo.", "no_thought")),
        ("", ("", "", "empty_answer")),
    ],
)
def test_a_reply_is_taken_apart_and_nothing_is_guessed(text, expected):
    reply = parse_reply(text)
    assert (reply.thought, reply.answer, reply.format) == expected


def test_replies_and_languages():
    assert make_reply(" a ", "b\n") == "<think>a</think>b"
    assert [language_of(t) for t in ("hello 你", "你好 ok", "123")] == ["en", "en", "en"] and language_of("你好吗 ok") == "zh"
