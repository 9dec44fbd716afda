"""One language throughout: which languages are distinguished, and what has none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.rules import rule_verifier
from safework_cli.verifiers.rules.form import language_named

SENTENCES = {
    "en": ["The answer is yes.", "It depends on the weather.", "I'm sorry, but I can't help with that.",
           "Run the command and restart the server."],
    "zh": ["答案是四十二。", "我不知道。", "使用Python编写这个函数。", "對不起，我不能幫助你。"],
    "ja": ["答えは四十二です。", "申し訳ありませんが、お答えできません。", "コンピュータ"],
    "ko": ["정답은 사십이입니다.", "죄송하지만 도와드릴 수 없습니다."],
    "cyrillic": ["Ответ: сорок два.", "Извините, я не могу помочь с этим."],
    "arabic": ["عذراً، لا أستطيع مساعدتك في ذلك."],
    "el": ["Η απάντηση είναι ναι."], "he": ["התשובה היא כן."], "th": ["คำตอบคือสี่สิบสอง"], "devanagari": ["उत्तर बयालीस है।"],
    "de": ["Das ist eine gute Frage.", "Ich weiß es nicht.", "Es tut mir leid, aber dabei kann ich nicht helfen."],
    "fr": ["Je ne sais pas.", "La réponse est oui.", "Paris est la capitale de la France."],
    "es": ["La respuesta es correcta.", "Lo siento, no puedo ayudarte con eso."],
    "it": ["La risposta è quarantadue.", "Mi dispiace, ma non posso aiutarti."],
    "pt": ["A resposta está correta.", "Eu não sei."], "nl": ["Het antwoord is tweeënveertig."], 
    "pl": ["Odpowiedź brzmi czterdzieści dwa."],
    "sv": ["Svaret är fyrtiotvå."], "tr": ["Cevap kırk iki."], "vi": ["Câu trả lời là bốn mươi hai."],
}  # fmt: skip
NONE = [
    "42", "OK", "B", "Paris", "Leonardo da Vinci", "Rio de Janeiro", "El Niño", "Schadenfreude", "sodium chloride",
        "$x^2 + y^2$", "\\boxed{42}", "```python\nfür = 1\n```", "C++", "3.5 km", "?!",
    "https://example.org/eine/lange/adresse/hier", ""]  # fmt: skip


@pytest.mark.parametrize(("language", "text"), [(language, text) for language, texts in SENTENCES.items() for text in texts])
def test_a_sentence_names_its_language(language, text):
    assert language_named(text) == language


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_sentence_has_none(text):
    assert language_named(text) is None


def judged(question: str, thought: str, answer: str) -> str | None:
    (verdict,) = rule_verifier("language").judge([Exchange([{"role": "user", "content": question}], f"<think>{thought}</think>{answer}")])
    return verdict.label


@pytest.mark.parametrize("language", [language for language in SENTENCES if language != "en"])
def test_an_english_question_is_not_answered_in_another_language(language):
    question, thought = "What is six times seven?", "I multiply the two numbers."
    assert judged(question, thought, SENTENCES[language][0]) == "mixed"
    assert judged(SENTENCES[language][0], SENTENCES[language][-1], SENTENCES[language][0]) == "same"
    assert judged(SENTENCES[language][0], thought, SENTENCES[language][0]) == "mixed"


@pytest.mark.parametrize("answer", NONE[:-1])
def test_a_short_answer_agrees_with_every_question(answer):
    for question, thought in (
        ("What is six times seven?", "I multiply the two numbers."),
        ("六乘以七等于多少？", "把两个数相乘。"),
        ("Wie viel ist sechs mal sieben?", "Ich rechne."),
    ):
        assert judged(question, thought, answer) == "same"


def test_quotations_and_code_do_not_count():
    assert (
        judged('What does "Ich weiß es nicht, mein Freund" mean?', "It is German for not knowing.", "It means that somebody does not know.")
        == "same"
    )


def test_long_replies_are_read_in_a_moment():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
        "from safework_cli.verifiers.rules.form import language_named\n"
        "for piece in ('a ', '`', '$', '\"', '\\n', ' ', '\\\\\\\\a', '我', 'http://', 'a@', 'x'):\n"
        "    language_named(piece * (400_000 // len(piece)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.parametrize(
    ("question", "answer", "score"), [("Say what?", "你好，这是答案。", 0.0), ("Who?", "Leonardo da Vinci", 1.0), ("谁？", "OK", 1.0)]
)
def test_a_short_question_has_the_language_of_its_script(question, answer, score):
    (verdict,) = rule_verifier("language").judge([Exchange([{"role": "user", "content": question}], answer)])
    assert verdict.score == score
