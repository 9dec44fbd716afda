"""Every family's template: what is trained on is what is sampled, what is sampled is read in one format, turns end once."""

from __future__ import annotations

import json

import pytest
from jinja2 import UndefinedError

from families import FAMILIES, family_tokenizer
from safework_cli.core.errors import InputError
from safework_cli.data.reply import parse_reply
from safework_cli.models.chat_template import encode_conversation, encode_prompt, instructed, observation_ids
from safework_cli.models.load import template_hash
from safework_cli.models.rendering import TemplateError
from safework_cli.models.templates import named_template, template_folder, template_names, training_variant, use_template
from safework_cli.models.thoughts import ThoughtReader

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Who built it?"}
SEEN = {"role": "user", "content": "Results: none"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(params=FAMILIES, ids=str)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def spoken(tiny_model, family):
    """Tokenizer and stop ids."""
    return family_tokenizer(tiny_model, family)


@pytest.mark.parametrize(
    "layout", ["<think>Look it up.</think>Ada", "<think>\nLook it up.\n</think>\n\nAda", "Look it up.\n</think>\n\nAda"]
)
def test_training_is_on_what_generation_would_sample(family, spoken, layout):
    tokenizer, stops = spoken
    encoded = encode_conversation(tokenizer, [ASKED, said(layout)], stops)
    prompt = encode_prompt(tokenizer, [ASKED]).ids
    sampled = encoded.input_ids[len(prompt) :]
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.supervised == [False] * len(prompt) + [True] * len(sampled)
    assert sampled[-1] in stops
    reply = parse_reply(ThoughtReader(tokenizer).text_of(prompt, sampled))
    opened = family.opens or layout.startswith("<think>")  # a reply without the tag is for templates that open the thought
    assert (reply.thought, reply.answer, reply.format) == ("Look it up.", "Ada", "ok" if opened else "unopened")
    assert tokenizer.decode(encoded.input_ids).count("<think>") == opened


def test_the_prompt_says_whether_the_thought_is_open(family, spoken):
    tokenizer, _ = spoken
    reader = ThoughtReader(tokenizer)
    assert reader.opened(encode_prompt(tokenizer, [ASKED]).ids) == family.opens
    cut = tokenizer("Look it", add_special_tokens=False)["input_ids"]
    parsed = parse_reply(reader.text_of(encode_prompt(tokenizer, [ASKED]).ids, cut))
    assert (parsed.format, parsed.answer) == (("unclosed", "") if family.opens else ("no_thought", "Look it"))


def test_a_reply_is_continued_inside_its_thought(family, spoken):
    tokenizer, stops = spoken
    begun = encode_prompt(tokenizer, [ASKED, said("<think>Look")]).ids
    whole = encode_conversation(tokenizer, [ASKED, said("<think>Look it up.</think>Ada")], stops).input_ids
    assert tokenizer.decode(begun).count("<think>") == 1
    assert "".join(tokenizer.decode(whole).split()).startswith("".join(tokenizer.decode(begun).split()))


def test_an_episode_is_trained_on_as_it_is_sampled(family, spoken):
    """Sampled turns and the environment's words between them, whichever of the stop tokens was sampled; each turn ends once."""
    tokenizer, stops = spoken
    first, second = said("<think>Look.</think><search>Ada</search>"), said("<think>Nothing.</think><answer>Ada</answer>")
    whole = encode_conversation(tokenizer, [ASKED, first, SEEN, second], stops)
    one = encode_conversation(tokenizer, [ASKED, first], stops)
    between = observation_ids(tokenizer, [ASKED, first, SEEN], stops, stopped=True)
    assert whole.input_ids[: len(one.input_ids) + len(between)] == one.input_ids + between
    assert not any(whole.supervised[len(one.input_ids) : len(one.input_ids) + len(between)])
    assert all(whole.supervised[len(one.input_ids) + len(between) :])
    ends = {int(i) for token in (*family.stops, family.eos, *family.special) if "end" in token or token in ("<|eot_id|>", "</s>")
            for i in [tokenizer.convert_tokens_to_ids(token)]}  # fmt: skip
    assert between[0] not in ends
    unstopped = observation_ids(tokenizer, [ASKED, first, SEEN], stops, stopped=False)
    assert tokenizer.decode(unstopped).lstrip().startswith(tuple(str(tokenizer.convert_ids_to_tokens(i)) for i in ends))


def test_a_system_message_is_taken_or_refused_in_words(family, spoken):
    tokenizer, _ = spoken
    if family.system:
        assert "Be brief." in tokenizer.decode(encode_prompt(tokenizer, [SYSTEM, ASKED]).ids)
        return
    with pytest.raises(TemplateError, match="the chat template refuses it: System role not supported"):
        encode_prompt(tokenizer, [SYSTEM, ASKED])
    ours = instructed(tokenizer, "Be brief.", [ASKED])  # an instruction of a stage opens the user's message
    assert ours == [{"role": "user", "content": "Be brief.\n\nWho built it?"}]


def test_a_reply_must_not_write_control_tokens(family, spoken):
    tokenizer, stops = spoken
    for token in (family.eos, *family.stops):
        with pytest.raises(TemplateError, match="writes the control token"):
            encode_conversation(tokenizer, [ASKED, said(f"<think>a</think>It ends with {token} here.")], stops)


def test_a_template_that_opens_the_thought_wants_one(family, spoken):
    tokenizer, stops = spoken
    if family.opens:
        with pytest.raises(TemplateError, match="opens a thought in the prompt, and the reply closes none"):
            encode_conversation(tokenizer, [ASKED, said("Ada")], stops)
    else:
        encoded = encode_conversation(tokenizer, [ASKED, said("Ada")], stops)
        sampled = [i for i, s in zip(encoded.input_ids, encoded.supervised, strict=True) if s]
        assert ThoughtReader(tokenizer).text_of([], sampled).strip() == "Ada"  # no empty thought


@pytest.mark.parametrize(
    ("tokens", "text", "expected"),
    [
        (["[THINK]", "[/THINK]"], "[THINK]a[/THINK]b", "<think>a</think>b"),
        (["<|channel|>", "<|message|>", "<|start|>", "<|end|>"],
         "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "<think>a</think>b"),
        (["<|channel|>", "<|message|>", "<|start|>", "<|end|>"], "<|channel|>final<|message|>b", "b"),
        (["<|channel>", "<channel|>"], "<|channel>thought\na\n<channel|>b", "<think>a</think>b"),
        (["◁think▷", "◁/think▷"], "◁think▷a◁/think▷b", "<think>a</think>b"),
        (["<seed:think>", "</seed:think>"], "<seed:think>a</seed:think>b", "<think>a</think>b"),
        ([], "[THINK]a[/THINK]b", "[THINK]a[/THINK]b"),  # only text, in a tokenizer of another family
    ],
)  # fmt: skip
def test_thoughts_of_other_families_are_read(tiny_model, tokens, text, expected):
    tokenizer, _ = family_tokenizer(tiny_model, FAMILIES["qwen2.5"])
    tokenizer.add_tokens(tokens, special_tokens=True)
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert ThoughtReader(tokenizer).text_of([], ids) == expected


def test_the_date_in_a_template_does_not_move(tiny_model):
    tokenizer, _ = family_tokenizer(tiny_model, FAMILIES["llama3.2"])
    assert "26 Jul 2024" in tokenizer.decode(encode_prompt(tokenizer, [ASKED]).ids)
    plain, _ = family_tokenizer(tiny_model, FAMILIES["llama3"])
    plain.chat_template = tokenizer.chat_template.replace("strftime_now", "another_name")
    assert template_hash(plain) != template_hash(tokenizer)


def test_training_templates_are_chosen_by_name(tiny_model):
    tokenizer, _ = family_tokenizer(tiny_model, FAMILIES["qwen3"])
    assert training_variant(tokenizer.chat_template) == "qwen3_training"
    use_template(tokenizer, "training")
    assert tokenizer.chat_template == named_template("qwen3_training") and "generation %}" not in tokenizer.chat_template
    earlier = [ASKED, said("<think>\nLook.\n</think>\n\nAda"), SEEN]
    assert "Look." in tokenizer.apply_chat_template(earlier, tokenize=False)
    tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(InputError, match="no training variant"):
        use_template(tokenizer, "training")


@pytest.mark.parametrize("name", [name for name in template_names() if name.endswith("_training")])
def test_a_training_template_without_its_marks_renders_the_same(tiny_model, name):
    """What is saved for servers with a plain Jinja says what TRL's file says."""
    tokenizer, _ = family_tokenizer(tiny_model, FAMILIES["qwen2.5"])
    texts, messages = [], [ASKED, said("<think>a</think>b"), SEEN]
    for template in (named_template(name), (template_folder() / f"{name}.jinja").read_text()):
        tokenizer.chat_template = template
        try:
            texts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except UndefinedError as error:  # LLaVA-NeXT's reads lists of parts only
            texts.append(str(error))
    assert texts[0] == texts[1], json.dumps(texts)
