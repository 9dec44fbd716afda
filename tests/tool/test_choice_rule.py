"""The choice rule: replies in many words, in English, Chinese and a few other languages, and the letter that a careful reader takes."""

from __future__ import annotations

import time

import pytest

from safework_cli.data.suites.registry import load_suite
from safework_cli.verifiers import Exchange, Verdict
from safework_cli.verifiers.contract import UNPARSED
from safework_cli.verifiers.rules import rule_verifier
from safework_cli.verifiers.rules.choice import LETTERS, chosen_letter

METALS = ["iron", "copper", "gold", "silver"]
PLANETS = ["水星", "金星", "地球", "火星"]
NUMBERS = ["0.5", "5", "-5", "50"]
MANY = [f"word{n}" for n in range(26)]
TEN = ["oak", "elm", "ash", "fir", "yew", "pine", "lime", "plum", "pear", "palm"]
YES = ["Yes", "No"]
SENTENCES = ["The ice melts.", "The ice does not melt.", "The water freezes.", "Nothing happens."]
VITAMINS = ["Vitamin A", "Vitamin C", "Vitamin D", "Vitamin K"]

ENGLISH = [
    # said plainly
    ("C", "C"),
    ("c", "C"),
    ("(C)", "C"),
    ("[C]", "C"),
    ("C)", "C"),
    ("c)", "C"),
    ("C.", "C"),
    ("**C**.", "C"),
    ("`C`", "C"),
    ('"C"', "C"),
    ("“C”", "C"),
    ("$C$", "C"),
    ("\\(C\\)", "C"),
    ("\n\nC\n", "C"),
    ("Ｃ", "C"),
    ("Ⓒ", "C"),
    ("Option C", "C"),
    ("option (c)", "C"),
    ("Choice C.", "C"),
    ("C) gold", "C"),
    ("(C) gold", "C"),
    ("C: gold", "C"),
    ("C - gold", "C"),
    ("C — gold, the noble one.", "C"),
    ("C gold", "C"),
    ("C, since it does not rust.", "C"),
    ("C because it does not rust", "C"),
    ("A because iron rusts", "A"),
    ("A: iron", "A"),
    ("a. iron", "A"),
    # stated
    ("The answer is C", "C"),
    ("the answer is c", "C"),
    ("the answer is (c)", "C"),
    ("The answer is: C", "C"),
    ("The answer is:\n\nC", "C"),
    ("The answer is option C.", "C"),
    ("The answer is most likely C.", "C"),
    ("The answer is therefore **C**.", "C"),
    ("The answer is clearly (C) gold.", "C"),
    ("The answer is, I think, C.", "C"),
    ("The answer to this question is C.", "C"),
    ("The correct answer, as shown above, is C.", "C"),
    ("The answer seems to be C.", "C"),
    ("The answer has to be C", "C"),
    ("The answer should be C, I believe.", "C"),
    ("My answer is C.", "C"),
    ("My final answer: C", "C"),
    ("FINAL ANSWER: C", "C"),
    ("ANSWER: C", "C"),
    ("Answer – C", "C"),
    ("Answer → C", "C"),
    ("Answer => C", "C"),
    ("Answer. C", "C"),
    ("Answer (C)", "C"),
    ("Answer-C", "C"),
    ("**Answer**: C) gold", "C"),
    ("**Answer: C**", "C"),
    ("**Answer**\n\n**C**", "C"),
    ("## Answer\n\nC. gold", "C"),
    ("Answer: [C]", "C"),
    ("Answer: {C}", "C"),
    ("Answer: <C>", "C"),
    ("Answer: [[C]]", "C"),
    ("Final verdict: [[C]]", "C"),
    ('{"answer": "C"}', "C"),
    ('{"reasoning": "gold does not rust", "correct_answer": "C"}', "C"),
    ("answer = 'c'", "C"),
    ("<answer>C</answer>", "C"),
    ("<answer> (C) gold </answer>", "C"),
    ("<answer>gold</answer>", "C"),
    ("<answer>C", "C"),
    ("<final_answer>C</final_answer>", "C"),
    ("The correct option is (C).", "C"),
    ("The correct choice here would be C.", "C"),
    ("The correct letter: C", "C"),
    ("Correct answer: C", "C"),
    ("Correct option: **C**", "C"),
    ("The best choice among these is C.", "C"),
    ("Selected answer: C", "C"),
    ("I choose C.", "C"),
    ("I'd pick (C).", "C"),
    ("I would go with option C.", "C"),
    ("I'll go with C", "C"),
    ("We should select C.", "C"),
    ("Let's go with C.", "C"),
    ("I am going with C", "C"),
    ("My choice is C.", "C"),
    ("My pick: C", "C"),
    ("I think it's C.", "C"),
    ("I believe C is correct.", "C"),
    ("It's C.", "C"),
    ("It must be C.", "C"),
    ("Must be C.", "C"),
    ("So C.", "C"),
    ("Thus, C", "C"),
    ("Hence (C).", "C"),
    ("Therefore option C.", "C"),
    ("In conclusion, C.", "C"),
    ("By elimination, C.", "C"),
    ("That leaves C.", "C"),
    ("Which corresponds to option C.", "C"),
    ("Gold does not rust, so the answer must be C.", "C"),
    ("C is correct.", "C"),
    ("C is right.", "C"),
    ("C is the answer.", "C"),
    ("C is the best answer.", "C"),
    ("Option C is the correct choice.", "C"),
    ("C seems the most plausible.", "C"),
    ("C would be the right answer.", "C"),
    ("The answer is C: gold.", "C"),
    ("The answer is gold.", "C"),
    ("The answer is gold (C).", "C"),
    ("The answer is gold, which is option C.", "C"),
    ("The metal that does not rust is gold, so the answer is (C).", "C"),
    ("gold", "C"),
    ("Gold.", "C"),
    ("**Gold**", "C"),
    ("It is gold.", "C"),
    ("The metal is gold.", "C"),
    ("Of the four metals, only gold never tarnishes.", "C"),
    # LaTeX
    ("\\boxed{C}", "C"),
    ("\\boxed{c}", "C"),
    ("$$\\boxed{C}$$", "C"),
    ("\\[\\boxed{\\textbf{C}}\\]", "C"),
    ("\\boxed{\\text{(C)}}", "C"),
    ("\\boxed{\\textbf{(C)}\\ \\text{gold}}", "C"),
    ("\\boxed{\\text{C) gold}}", "C"),
    ("\\boxed{\\text{Option C}}", "C"),
    ("\\boxed{\\mathit{C}}", "C"),
    ("\\boxed{gold}", "C"),
    ("\\boxed{\\text{gold}}", "C"),
    ("\\boxed{\\{C\\}}", "C"),
    ("\\boxed C", "C"),
    ("\\boxed{C", "C"),
    ("\\fbox{C}", "C"),
    ("\x08oxed{C}", "C"),  # \b of an unescaped string
    ("\\boxed{\\boxed{C}}", "C"),
    ("The density is \\boxed{19.3}, so the answer is C.", "C"),
    ("We find \\boxed{x^2 + A}. Answer: C", "C"),
    ("Answer: C\n\n\\boxed{19.3}", "C"),
    ("First \\boxed{B}. Rechecking: \\boxed{C}", "C"),
    ("Answer: B. No wait, \\boxed{C}", "C"),
    ("\\boxed{C}, since \\boxed{A} is wrong", "C"),
    ("\\boxed{A} or \\boxed{C}", None),
    ("\\boxed{A, C}", None),
    ("\\boxed{AC}", None),
    ("\\boxed{A \\text{ and } C}", None),
    ("\\boxed{19.3}", None),
    ("\\boxed{\\text{None}}", None),
    # denied, and chosen instead
    ("Not A. C.", "C"),
    ("It is not A, it is C.", "C"),
    ("The answer is not A but C.", "C"),
    ("The answer is C, not A.", "C"),
    ("C, not A", "C"),
    ("C rather than A", "C"),
    ("The answer is C and not A.", "C"),
    ("A is wrong. B is wrong. C is right. D is wrong.", "C"),
    ("A is incorrect, B is incorrect, D is incorrect, and C is correct.", "C"),
    ("I don't think the answer is A; I choose C.", "C"),
    ("You might be tempted to choose A, but the answer is C.", "C"),
    ("A cannot be the answer. C is.", None),
    ("I would not choose C.", None),
    ("The answer is not C.", None),
    ("The answer cannot be C.", None),
    ("I don't think the answer is C.", None),
    ("It isn't C", None),
    ("Not C", None),
    ("Anything but C", None),
    ("C is not correct.", None),
    ("C is wrong.", None),
    ("Neither A nor B.", None),
    # several, none
    ("A or C", None),
    ("A and C", None),
    ("Either A or C.", None),
    ("Both A and C are correct.", None),
    ("The answer is A or C.", None),
    ("The answer is (A) iron or (C) gold.", None),
    ("Answer: A/C", None),
    ("Answer: A & C", None),
    ("Answer: AC", None),
    ("Answer: A, C", None),
    ("Answer: A, B and C", None),
    ("iron or gold", None),
    ("I am torn between A and C.", None),
    ("A, B, C, D", None),
    ("A\nB\nC\nD", None),
    ("A. iron\nB. copper\nC. gold\nD. silver", None),
    ("None of the above.", None),
    ("Answer: none of the above", None),
    ("Answer: Don't know", None),
    ("Answer: cannot be determined", None),
    ("Answer: Let's think step by step.", None),
    ("I do not know.", None),
    ("I'm sorry, I can't help with that.", None),
    ("I cannot tell whether it is gold.", None),
    ("Which option is correct? A, B, C or D?", None),
    ("The options are:\nA. iron\nB. copper", None),
    ("Answer choices:\nA. iron\nB. copper\nC. gold\nD. silver", None),
    ("A good question about metals.", None),
    ("The answer is A metal that does not rust.", None),
    ("The answer is a noble metal.", None),
    ("Answer: A bit of everything", None),
    ("The answer is E.", None),
    ("Answer: F", None),
    ("Z", None),
    ("Is it C?", None),
    ("Could the answer be C?", None),
    ("", None),
    ("...", None),
    ("The C programming language", None),
    ("Bring the metal to a boil and wait.", None),
    # hedged, and decided
    ("I'm not sure, but I think C.", "C"),
    ("Probably C.", "C"),
    ("It could be A or C, but I'd go with C.", "C"),
    ("I hesitate between A and C. My answer is C.", "C"),
    ("A or C? The answer is C.", "C"),
    ("C, I think", "C"),
    # revised
    ("Answer: A\nWait, that is not right.\nAnswer: C", "C"),
    ("The answer is A. Hold on, it's C.", "C"),
    ("The answer is A. On second thought, I would say C.", "C"),
    ("The answer is A... no, wait, it's C!", "C"),
    ("Answer: A. Wait, that is wrong.", None),
    ("Answer: C. Wait, let me check that. Yes, C is correct.", "C"),
    ("The answer is C. Actually, this question is about corrosion.", "C"),
    # with other letters around
    ("The answer is C. Note that A is a common distractor.", "C"),
    ("The answer is C. A is a ferrous metal, and B turns green.", "C"),
    ("A. iron rusts.\nB. copper turns green.\nC. gold stays.\nD. silver tarnishes.\n\nThe answer is C.", "C"),
    ("A) iron\nB) copper\nC) gold\nD) silver\n\nC", "C"),
    ("A) iron\nB) copper\nC) gold\nD) silver\n\n**C) gold**", "C"),
    ("- A: rusts\n- B: turns green\n- C: stays\n- D: tarnishes\n\nSo C.", "C"),
    ("C. gold\n\nA. iron rusts, so no.\nB. copper turns green, so no.", "C"),
    ("C\n\nA is wrong because iron rusts.", "C"),
    ("**C. gold**\n\nExplanation: iron (A) rusts, copper (B) turns green.", "C"),
    ("Option A: incorrect.\nOption B: incorrect.\nOption C: correct.\nOption D: incorrect.", "C"),
    ("A: False\nB: False\nC: True\nD: False", "C"),
    ("A ❌\nB ❌\nC ✅\nD ❌", "C"),
    ("A ✗ B ✗ C ✓ D ✗", "C"),
    ("~~A~~ C", "C"),
    ("Iron rusts and copper turns green. Gold does neither. (C)", "C"),
    ("| Option | Verdict |\n|---|---|\n| A | rusts |\n\n**Final answer:** C", "C"),
    ("Answer: C\n\nQuestion: Which metal is liquid?\nA. mercury\nAnswer: A", "C"),
    ("Question: Which metal does not rust?\nA. iron\nC. gold\nAnswer: C", "C"),
    ("Answer: C<|im_end|>\nuser: and now? Answer: A", "C"),
    ("Vitamin C is in fruit, so the answer is A.", "A"),
    ("The answer is C because I looked it up.", "C"),
    ("I think the answer is C.", "C"),
    ("If it were cheap, the answer would be A. The answer is C.", "C"),
]  # fmt: skip

CHINESE = [
    ("D", "D"),
    ("D。", "D"),
    ("（D）", "D"),
    ("【D】", "D"),
    ("Ｄ", "D"),
    ("D、火星", "D"),
    ("D．火星", "D"),
    ("D：火星", "D"),
    ("D 火星", "D"),
    ("D项", "D"),
    ("选项D", "D"),
    ("选D", "D"),
    ("选 D。", "D"),
    ("选（D）", "D"),
    ("我选D", "D"),
    ("我选择D。", "D"),
    ("应选D", "D"),
    ("应当选择D项", "D"),
    ("故选D。", "D"),
    ("故选：D", "D"),
    ("故答案为D", "D"),
    ("故答案为：D。", "D"),
    ("所以选D", "D"),
    ("因此选D", "D"),
    ("因此答案是D。", "D"),
    ("答案：D", "D"),
    ("答案 D", "D"),
    ("答案D", "D"),
    ("答案是 D。", "D"),
    ("答案是**D**", "D"),
    ("答案应该是D", "D"),
    ("答案应为D", "D"),
    ("答案选择D", "D"),
    ("答案就是D", "D"),
    ("答案显然是D", "D"),
    ("【答案】D", "D"),
    ("[答案] D", "D"),
    ("**答案**：D", "D"),
    ("答案：\nD", "D"),
    ("### 答案\nD", "D"),
    ("最终答案：D", "D"),
    ("参考答案：D", "D"),
    ("答：D", "D"),
    ("本题答案为D。", "D"),
    ("这道题的答案是D。", "D"),
    ("正确答案：D. 火星", "D"),
    ("正确答案为“D”", "D"),
    ("正确的选项是D", "D"),
    ("正确选项：D", "D"),
    ("正确的是D", "D"),
    ("D是正确答案", "D"),
    ("D是正确的", "D"),
    ("D选项正确", "D"),
    ("D项正确", "D"),
    ("选项D是正确的。", "D"),
    ("只有D正确", "D"),
    ("只有选项D符合题意", "D"),
    ("D最合适", "D"),
    ("D符合题意，故选D", "D"),
    ("因此，D。", "D"),
    ("所以是D", "D"),
    ("应该是D", "D"),
    ("我认为是D", "D"),
    ("显然是D。", "D"),
    ("综上所述，选D。", "D"),
    ("综上，答案为D", "D"),
    ("\\boxed{D}", "D"),
    ("答案是\\boxed{D}。", "D"),
    ("答案是 $\\boxed{\\text{D}}$", "D"),
    ("答案是\\boxed{火星}", "D"),
    ("火星", "D"),
    ("火星。", "D"),
    ("答案是火星。", "D"),
    ("答案是火星（D）。", "D"),
    ("红色的行星是火星。", "D"),
    ("A错误，B错误，C错误，D正确。", "D"),
    ("A不正确；B不正确；C不正确；D正确", "D"),
    ("A项错误；B项错误；C项错误；D项正确，故选D。", "D"),
    ("A：错。B：错。C：错。D：对。", "D"),
    ("A. 水星\nB. 金星\nC. 地球\nD. 火星\n\n答案：D", "D"),
    ("A. 水星\nB. 金星\nC. 地球\nD. 火星\n\nD", "D"),
    ("不是A，是D", "D"),
    ("不选A，选D", "D"),
    ("不是A而是D", "D"),
    ("D，不是A", "D"),
    ("答案是D，不是A。", "D"),
    ("排除A、B、C，选D。", "D"),
    ("A不是正确答案，答案是D", "D"),
    ("答案是A。不对，应该是D。", "D"),
    ("答案：A\n等等，重新考虑一下。\n答案：D", "D"),
    ("答案是D。A是水星，离太阳最近。", "D"),
    ("不得不选D", "D"),
    ("非D莫属", "D"),
    ("毫无疑问，选D", "D"),
    ("我不确定，但我选D。", "D"),
    ("D\n\n解析：A是水星。", "D"),
    ("D。因为火星是红色的。", "D"),
    ("本题考查行星的颜色，火星呈红色，故D正确。", "D"),
    ("说法错误的是D", "D"),
    ("不选D", None),
    ("不能选D", None),
    ("不应选D", None),
    ("不应该选择D", None),
    ("不要选D", None),
    ("别选D", None),
    ("答案不是D", None),
    ("答案不可能是D", None),
    ("不会是D", None),
    ("D不正确", None),
    ("D是错误的", None),
    ("D错误", None),
    ("排除D", None),
    ("选A和D", None),
    ("选AD", None),
    ("答案：A、D", None),
    ("答案是A或D", None),
    ("A、D都正确", None),
    ("A和D", None),
    ("A还是D？", None),
    ("选择题的答案需要思考。", None),
    ("我不知道答案。", None),
    ("无法确定是不是火星。", None),
    ("水星或火星", None),
    ("答案是E", None),
    ("答案：无", None),
    ("A. 水星\nB. 金星\nC. 地球\nD. 火星", None),
    ("请从A、B、C、D中选择", None),
]

OTHERS = [
    # letters beyond J, as far as the question goes
    ("The answer is K.", MANY, "K"),
    ("Answer: Z", MANY, "Z"),
    ("选Q", MANY, "Q"),
    ("\\boxed{M}", MANY, "M"),
    ("L", TEN, None),
    ("The answer is J.", TEN, "J"),
    # the pronoun, and the letter
    ("The answer is I.", TEN, "I"),
    ("(I)", TEN, "I"),
    ("I", TEN, "I"),
    ("The answer is I think F.", TEN, "F"),
    ("I think the answer is F because I counted.", TEN, "F"),
    ("I would say so.", TEN, None),
    ("Answer: I don't know", TEN, None),
    # numbers and their signs
    ("5", NUMBERS, "B"),
    ("-5", NUMBERS, "C"),
    ("The answer is 0.5.", NUMBERS, "A"),
    ("The answer is 5.", NUMBERS, "B"),
    ("Answer: -5 m", NUMBERS, "C"),
    ("10 * 5 = 50", NUMBERS, "D"),
    ("\\boxed{0.5}", NUMBERS, "A"),
    ("There are 5 steps to do.", NUMBERS, None),
    ("\\boxed{500}", NUMBERS, None),
    # options that are words of every reply
    ("Yes", YES, "A"),
    ("No.", YES, "B"),
    ("No, it does not.", YES, "B"),
    ("The answer is yes.", YES, "A"),
    ("There is no way to say.", YES, None),
    ("Yes and no.", YES, None),
    # options that are sentences, or hold each other
    ("The ice does not melt.", SENTENCES, "B"),
    ("In a freezer the ice does not melt.", SENTENCES, "B"),
    ("melts", SENTENCES, None),
    ("Vitamin C", VITAMINS, "B"),
    ("The answer is Vitamin A.", VITAMINS, "A"),
    ("The answer is C, that is Vitamin D.", VITAMINS, "C"),
    ("The answer is vitamin K (D).", VITAMINS, "D"),
    ("New York", ["York", "New York", "New York City", "Albany"], "B"),
    ("It is New York City.", ["York", "New York", "New York City", "Albany"], "C"),
    ("B. iron", METALS, None),  # letter and text disagree
    ("Answer: b", [], "B"),  # unknown options
    ("Answer: J", [], "J"),
    # other languages
    ("Antwort: C", METALS, "C"),
    ("Die richtige Antwort ist C.", METALS, "C"),
    ("La réponse est C.", METALS, "C"),
    ("La respuesta correcta es C.", METALS, "C"),
    ("Risposta: C", METALS, "C"),
    ("A resposta correta é C.", METALS, "C"),
    ("答えはCです。", METALS, "C"),
    ("正解: C", METALS, "C"),
    ("정답은 C입니다.", METALS, "C"),
    ("답: C", METALS, "C"),
]


MORE_ENGLISH = [
    # taken back, denied, joined, supposed, reported
    ("I was going to say A, but C is correct.", "C"),
    ("A seems right at first, but C is correct.", "C"),
    ("While A is tempting, the answer is C.", "C"),
    ("Either A or C, but C is more likely.", "C"),
    ("The answer is not A, B, or D. It's C.", "C"),
    ("A and B are both wrong, so it's C.", "C"),
    ("The answer is C, A and B are wrong.", "C"),
    ("The correct answer is none other than C.", "C"),
    ("There is no doubt that the answer is C.", "C"),
    ("Is it A? No. Is it C? Yes, C.", "C"),
    ("The answer is not (A), (B), or (D).", None),
    ("I refuse to choose C.", None),
    ("I doubt the answer is C.", None),
    ("I doubt it's C.", None),
    ("It couldn't be C.", None),
    ("Rule out C.", None),
    ("C? No.", None),
    ("Some say the answer is C.", None),
    ("You may think the answer is C.", None),
    ("Students often pick C.", None),
    ("The answer would be A if it were cheap.", None),
    ("Had it been cheap, the answer would be A.", None),
    ("The answer might be A or it might be C.", None),
    ("Answer: A (or C)", None),
    ("Answer: A or possibly C", None),
    ("A as well as C", None),
    ("A; C", None),
    ("(A)(C)", None),
    ("Answer: A? C?", None),
    ("A is iron, B is copper, C is gold, D is silver.", None),
    ("What if the answer is C?", None),
    ("Why is C correct?", None),
    ("We have A, B, C and D to choose from.", None),
    ("Let A be a set and B a subset of A.", None),
    ("The triangle ABC has a right angle at C.", None),
    ("Vitamin C12", None),
    ("\\boxed{A \\cup C}", None),
    ("\\boxed{A+C}", None),
    ("<answer>A or C</answer>", None),
    ('{"answer": ["A", "C"]}', None),
    ('{"choice": "C", "why": "A is heavy"}', "C"),
    # question and answer prefixes, other shapes
    ("A: C", "C"),
    ("A: gold", "C"),
    ("A: iron", "A"),
    ("A: I don't know.", None),
    ("Q: Which metal?\nA: C", "C"),
    ("Question 1: C", "C"),
    ("1. C", "C"),
    ("1. A\n2. C", None),
    ("Correct: C", "C"),
    ("Vote: C", "C"),
    ("Yes, C.", "C"),
    ("namely C", "C"),
    ("C (A is wrong).", "C"),
    ("gold => C", "C"),
    ("hence c is the answer", "C"),
    ("Let me go through them. A. iron\nB. copper\nC. gold\nD. silver", None),
    ("A. iron\nB. copper\nC. gold\nD. silver\n\nThe right one is gold.", "C"),
]  # fmt: skip

MORE_CHINESE = [
    ("【答案】D【解析】A是水星。", "D"),
    ("答案是A。不，应该是D。", "D"),
    ("答案：A（更正：D）", "D"),
    ("虽然A看起来对，但答案是D", "D"),
    ("选A不对，应选D", "D"),
    ("选D不选A", "D"),
    ("D而不是A", "D"),
    ("A×B×C×D√", "D"),
    ("ACB错误，D正确", "D"),
    ("答案是火星，不是水星", "D"),
    ("如果选A，则离太阳最近；因此选D", "D"),
    ("答案不该是D", None),
    ("我不认为答案是D", None),
    ("我不认为是D", None),
    ("难道是D？", None),
    ("D对吗？", None),
    ("选D吗", None),
    ("D是正确答案吗？", None),
    ("选A还是选D？", None),
    ("答案可能是A，也可能是D", None),
    ("如果问最近的行星，答案是A", None),
    ("A对应水星，D对应火星", None),
    ("A地到B地的距离", None),
]


@pytest.mark.parametrize(("reply", "letter"), MORE_ENGLISH)
def test_what_is_said_of_a_letter(reply, letter):
    assert chosen_letter(reply, METALS) == letter


@pytest.mark.parametrize(("reply", "letter"), MORE_CHINESE)
def test_what_is_said_of_a_letter_in_chinese(reply, letter):
    assert chosen_letter(reply, PLANETS) == letter


@pytest.mark.parametrize(("reply", "letter"), ENGLISH)
def test_english(reply, letter):
    assert chosen_letter(reply, METALS) == letter


@pytest.mark.parametrize(("reply", "letter"), CHINESE)
def test_chinese(reply, letter):
    assert chosen_letter(reply, PLANETS) == letter


@pytest.mark.parametrize(("reply", "choices", "letter"), OTHERS)
def test_other_questions(reply, choices, letter):
    assert chosen_letter(reply, choices) == letter


@pytest.mark.parametrize("padding", ["\n" * 3000, "Copper conducts. " * 300, "铜会变绿。" * 300])
@pytest.mark.parametrize("reply", ["The answer is C.", "\\boxed{C}", "因此答案是C。"])
def test_an_answer_far_into_a_reply_is_read(padding, reply):
    assert chosen_letter(f"{padding}\n{reply}", METALS) == "C"


@pytest.mark.parametrize("letter", "ABCD")
def test_every_form_reads_every_letter(letter):
    for form in ("{}", "({})", "The answer is {}.", "Answer: {}", "\\boxed{{{}}}", "答案是{}", "故选{}。", "I would go with {}.", "**{}**"):
        assert chosen_letter(form.format(letter), METALS) == letter, form


SHAPES = (
    "{letter}", "{letter}. {text}", "({letter}) {text}", "Answer: {letter}", "The answer is {letter}.", "The answer is ({letter}) {text}",
    "\\boxed{{{letter}}}", "**{letter}. {text}**", "答案是{letter}", "故选{letter}。", "{listed}\n\nThe answer is {letter}.",
    "{listed}\n\nSo {letter}.", "The answer is {letter}, because the others are wrong.", "I would choose {letter}.", "{text}",
)  # fmt: skip
NO_CHOICES = (
    "{listed}",
    "The answer is not {letter}.",
    "{letter} or {other}",
    "\\boxed{{{letter}, {other}}}",
    "不选{letter}",
    "Is it {letter}?",
)


@pytest.mark.parametrize("suite", ["mmlu-test", "truthfulqa", "safetybench", "ethics-commonsense"])
def test_real_options_do_not_hide_the_letter(suite, real_data):
    """Real options hold articles, formulas, "yes", "no", sentences and parts of one another."""
    rows = load_suite(suite, real_data)
    for number, row in enumerate(rows[:: max(1, len(rows) // 40)]):
        options = [str(choice) for choice in row.meta["choices"]]
        if len(set(options)) < len(options):
            continue
        place = number % len(options)
        names = {"letter": LETTERS[place], "other": LETTERS[place - 1], "text": options[place]}
        names["listed"] = "\n".join(f"{LETTERS[i]}. {option}" for i, option in enumerate(options))
        for shape in SHAPES:
            assert chosen_letter(shape.format(**names), options) == names["letter"], (shape, options)
        for shape in NO_CHOICES:
            assert chosen_letter(shape.format(**names), options) is None, (shape, options)


def test_verdicts_and_errors():
    def verdict(reply: str, answer: str | None, **meta: object) -> Verdict:
        (found,) = rule_verifier("choice").judge([Exchange([{"role": "user", "content": "Which?"}], reply, answer, None, dict(meta))])
        return found

    assert verdict("<think>A?</think>C", "C", choices=METALS) == Verdict(1.0, "correct")
    assert verdict("<think>C</think>The answer is A.", "(c).", choices=METALS) == Verdict(0.0, "wrong")
    assert verdict("<think>C</think>Who knows.", "C", choices=METALS) == Verdict(0.0, UNPARSED)
    assert verdict("M", "M", choices=MANY).score == 1.0
    assert verdict("M", "M").score == 1.0  # options unknown: as far as the gold answer goes
    assert verdict("C", "E", choices=METALS).error
    assert "27 choices" in (verdict("C", "C", choices=[*MANY, "x"]).error or "")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("London is not correct; Rome is.", None), ("London isn't right, Rome is.", None), ("London is incorrect.", None),
        ("伦敦不对，罗马对。", None),
        ("Rome is correct; London is not.", "D"), ("London is certainly wrong. Rome fits.", "D"), ("London cannot be it.", None),
        ("London is the largest city of England.", "B"),
    ],
)  # fmt: skip
def test_what_follows_an_options_text_may_deny_it(reply, letter):
    assert chosen_letter(reply, ["Paris", "London", "Berlin", "Rome"]) == letter


@pytest.mark.parametrize("reply", ["A,B " * 5_000, r"\boxed{" + "A, B, " * 40 + "foo}", "The answer is " + "A, B, " * 60 + "x"])
def test_lists_of_letters_take_no_time_to_speak_of(reply):
    """A gap between two letters can be read in one way only: with two, a list of forty took longer than anybody waits."""
    started = time.process_time()
    chosen_letter(reply, ["Paris", "London", "Berlin", "Madrid"])
    assert time.process_time() - started < 2
