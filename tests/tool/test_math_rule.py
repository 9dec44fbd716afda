"""The mathematics rule: what equals a gold answer scores 1, what does not scores 0, what is too large is wrong at once."""

from __future__ import annotations

import pytest

from safework_cli.verifiers import Exchange, Verdict
from safework_cli.verifiers.contract import UNPARSED
from safework_cli.verifiers.rules.mathematics import MathRule


@pytest.fixture(scope="module")
def maths():
    rule = MathRule(time_limit_seconds=60)
    yield rule
    rule.close()


def judged(rule: MathRule, gold: str | None, reply: str) -> Verdict:
    (found,) = rule.judge([Exchange([{"role": "user", "content": "How much?"}], reply, gold)])
    return found


SAME = {
    "plain numbers": [
        ("7", "7"),
        ("7", "7."),
        ("-7", "-7"),
        ("-7", "−7"),
        ("-7", "$-7$"),
        ("+7", "7"),
        ("7.50", "7.5"),
        ("0.5", ".5"),
        ("5", "5.000"),
        ("1234", "1 234"),
        ("1234", r"$1\,234$"),
        ("1234567", r"\boxed{1\,234\,567}"),
        ("58,500", "58500"),
        ("10,\\!080", "10080"),
        ("1,000,000", "10^6"),
        ("12", "１２"),
        ("0.125", "1/8"),
        ("0", "$0$"),
        ("-3", "\\boxed{ -3 }"),
        ("3.0", "3"),
        ("0.00012", "1.2e-4"),
        ("0.00012", "1.2 × 10^-4"),
        ("0.00012", r"$1.2 \times 10^{-4}$"),
        ("6.6e-34", r"\boxed{6.6\times10^{-34}}"),
        ("1/3", r"0.\overline{3}"),
        ("0.\\overline{27}", "3/11"),
        ("10^{20}", "100000000000000000000"),
        ("\\frac{1}{3}", "0.333333"),
    ],
    "fractions": [
        ("1/2", "½"),
        ("5/2", "2½"),
        ("5/2", "2 1/2"),
        ("5/2", r"2\frac{1}{2}"),
        ("-1/2", r"\boxed{-\frac12}"),
        ("-1/2", r"\frac{-1}{2}"),
        ("\\frac{6}{8}", "3/4"),
        ("137 \\frac{1}{2}", "137.5"),
        ("\\frac 59", "5/9"),
        ("\\frac9{19}", "9/19"),
        ("2/3", "two thirds"),
        ("3/4", "three quarters"),
        ("1/2", "one half"),
        ("\\frac{\\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
        ("\\dfrac{17}{50}", "0.34"),
    ],
    "words for numbers": [
        ("12", "The answer is twelve."),
        ("21", "twenty-one"),
        ("205", "two hundred and five"),
        ("-5", "minus five"),
        ("15", "十五"),
        ("105", "一百零五"),
        ("-3", "负三"),
        ("2500000", "250万"),
        ("2.5", "二点五"),
        ("0.2", "百分之二十"),
        ("3/8", "八分之三"),
        ("2000000000", "2 billion"),
        ("3200000", "3.2 million dollars"),
        ("300", "three hundred"),
        ("13000", "一万三千"),
    ],
    "percent, money, units": [
        ("25\\%", "25 percent"),
        ("25\\%", "1/4"),
        ("0.25", "25%"),
        ("5\\%", "$5\\%$"),
        ("12.5%", "12.5"),
        ("30", "30%"),
        ("\\$18.90", "18.90"),
        ("\\$18.90", "$18.9"),
        ("18.90", "\\$18.90"),
        ("€20", "20 euros"),
        ("20", "20元"),
        ("20", "¥20"),
        ("5.4 \\text{ cents}", "5.4"),
        ("5.4 \\text{ cents}", "$0.054"),
        ("15\\mbox{ cm}^2", "15"),
        ("15\\mbox{ cm}^2", r"15\text{ cm}^2"),
        ("864 \\mbox{ inches}^2", "864 square inches"),
        ("5 cm", "50 mm"),
        ("5 km", "5000 meters"),
        ("2 hours", "120 minutes"),
        ("30 students", r"\boxed{30}"),
        ("30", "30 students"),
        ("12", r"\boxed{12 \text{ km/h}}"),
        ("9.8", "9.8 m/s^2"),
        ("80", "80 kg"),
        ("\\frac{270}7\\text{ degrees}", r"\frac{270}{7}"),
        ("55^\\circ", "55"),
        ("55", r"55^{\circ}"),
        ("90^\\circ", r"\frac{\pi}{2}"),
        ("60", "60 degrees"),
        ("20", "总共20个苹果"),
        ("1500", "1.5k".replace("1.5k", "1,500 km")),
    ],
    "names on the left": [
        ("5", "$x = 5$"),
        ("x=5", "5"),
        ("S_{ABCD} = 5", "S_{ABCD} = 5"),
        ("\\angle ABC = 30^\\circ", "30"),
        ("f(x) = x^2", "x^2"),
        ("y = -2x", "y=-2x"),
        ("y = 2x + 3", "$2x+3$"),
        ("y = -2x", "2x + y = 0"),
        ("(x,y)=(1,2)", "(1,2)"),
        ("12", "n = 3 \\cdot 4 = 12"),
        ("42", "\\boxed{40 + 2 = 42}"),
        ("5x - 7y + 11z + 4 = 0", "-5x+7y-11z=4"),
        ("x^2+y^2=4", "y^2 + x^2 - 4 = 0"),
        ("|AB| = 3", "3"),
        ("P(A) = 0.3", "3/10"),
        ("a_{10} = 1023", "1023"),
        ("5", "y-intercept: 5"),
    ],
    "pairs, lists, sets": [
        ("(3,4)", "\\left(3, 4\\right)"),
        ("(3,4)", "(3.0, 4)"),
        ("(3,4)", "x = 3 and y = 4"),
        ("(3,4)", "y=4, x=3"),
        ("(1/2, 3)", "(0.5,3)"),
        ("1,-2", "-2, 1"),
        ("1,-2", "$x = 1$ or $x = -2$"),
        ("1,-2", "$1$ and $-2$"),
        ("3, 5, 7", "3, 5, and 7"),
        ("\\{1,2\\}", "{2,1}"),
        ("1 \\pm \\sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
        ("\\pm 3", "3 and -3"),
        ("\\{1\\pm\\sqrt{5},-2\\}", r"-2, 1+\sqrt5, 1-\sqrt5"),
        ("(1,-16,-4,43)", "$(1, -16, -4, 43)$"),
        ("\\emptyset", "\\{\\}"),
        ("\\{5\\}", "5"),
        ("5", "\\{5\\}"),
        ("(1,2),(3,4)", "(3,4), (1,2)"),
        ("1,2", "1和2"),
        ("1;2", "1, 2"),
        ("(2, \\infty)", "(2,+\\infty)"),
        ("1, 2, 3", r"\{1, 2, 3\}"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, π/2)"),
    ],
    "intervals": [
        ("(3,4]", "3 < x \\le 4"),
        ("(3,4]", "x \\in (3, 4]"),
        ("x \\in [-2,7]", "[-2,7]"),
        ("[-2,7]", "-2 ≤ x ≤ 7"),
        ("(5,\\infty)", "x > 5"),
        ("(-\\infty, 0]", "x \\leq 0"),
        ("(-\\infty, 0]", "0 \\ge x"),
        ("(-\\infty, 2) \\cup (3, \\infty)", "x < 2 or x > 3"),
        ("(-\\infty, 2) \\cup (3, \\infty)", "(3, \\infty) \\cup (-\\infty, 2)"),
        ("(-3,3)", "|x| < 3"),
        ("[1, \\infty)", "$x \\geqslant 1$"),
        ("\\mathbb{R}", "(-\\infty, \\infty)"),
        ("x \\ne 0", "(-\\infty,0)\\cup(0,\\infty)"),
        ("(1,3)", "x > 1 and x < 3"),
        ("\\mathbb{R} \\setminus \\{0\\}", "x \\neq 0"),
        ("(-\\sqrt{3}, \\sqrt{3})", "-\\sqrt{3} < x < \\sqrt{3}"),
        ("x<2", "2 > x"),
        ("x \\ge -1", "-x \\le 1"),
    ],
    "expressions": [
        ("(a+5)(b+2)", "ab+2a+5b+10"),
        ("x^2-1", "(x+1)(x-1)"),
        ("6r^2-4r-24", "2(3r^2-2r-12)"),
        ("\\cot x", "\\frac{\\cos x}{\\sin x}"),
        ("\\sin(2x)", "2\\sin x\\cos x"),
        ("e^{2x}", "(e^x)^2"),
        ("\\ln 8", "3\\ln 2"),
        ("11\\sqrt2", "\\sqrt{242}"),
        ("2\\sqrt{113}", "2*sqrt(113)"),
        ("\\frac{11+9a}{20}", "0.55+0.45a"),
        ("\\pi", "3.14159265"),
        ("20000/\\pi", "\\frac{20000}{\\pi}"),
        ("2k+2", "2(k+1)"),
        ("p - q", "-q+p"),
        ("6 - 5i", "-5i + 6"),
        ("1+2i", "2i+1"),
        ("2^{10}", "1024"),
        ("5!", "120"),
        ("\\binom{5}{2}", "10"),
        ("\\log_2 8", "3"),
        ("3R^2", "3R^{2}"),
        ("\\sqrt[3]{8}", "2"),
        ("x^{1/2}", "\\sqrt{x}"),
        ("\\frac{x}{2}", "0.5x"),
        ("2^{100}", "1267650600228229401496703205376"),
        ("4", "2+2"),
        ("x**2", "x^2"),
        ("\\frac{1}{2^{99}}", "2^{-99}"),
        ("\\lfloor 2.7 \\rfloor", "2"),
        ("\\sum_{k=1}^{10} k", "55"),
        ("f(2) < f(1) < f(4)", "f(2)<f(1)<f(4)"),
        ("-\\frac{\\pi}{6}", "-π/6"),
        ("8n^2 + 4n + 1", "4n(2n+1)+1"),
        ("\\log 100", "2"),
        ("\\sin^2 x + \\cos^2 x", "1"),
    ],
    "more": [
        ("42", "The answer is 42!"),
        ("y=x", "x=y"),
        ("1", "\\tan 45^\\circ"),
        ("\\sin 30^{\\circ}", "1/2"),
    ],
    "matrices, times, ratios, bases": [
        ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}"),
        ("\\begin{pmatrix} a \\\\ b+1 \\end{pmatrix}", "\\boxed{\\begin{pmatrix} a \\\\ 1+b \\end{pmatrix}}"),
        ("\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}", "\\begin{pmatrix} 0.2 \\\\ -3.6 \\end{pmatrix}"),
        ("\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}", "\\frac{1}{5}\\begin{pmatrix} 1 \\\\ -18 \\end{pmatrix}"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "(1, 2)"),
        ("12:00", "12:00"),
        ("3:30", "3:30 PM"),
        ("3:30 p.m.", "15:30"),
        ("2:3", "4:6"),
        ("3:2", "3 to 2"),
        ("1:2:3", "2:4:6"),
        ("204_5", "204_{5}"),
        ("204_5", "204_{\\text{five}}"),
        ("2516_8", "\\boxed{2516_8}"),
    ],
    "words": [
        ("\\text{Navin}", "navin"),
        ("\\text{east}", "The answer is east."),
        ("\\text{(B)}", "B"),
        ("\\text{(B)}", "\\boxed{\\text{B}}"),
        ("Yes", "\\boxed{\\text{Yes}}"),
        ("\\text{ellipse}", "It is an ellipse.".replace("an ", "")),
        ("No solution", "\\boxed{\\text{no solution}}"),
        ("Evelyn", "\\boxed{\\text{Evelyn}}"),
        ("\\text{even}", "even"),
        ("偶数", "\\boxed{偶数}"),
    ],
    "where the answer stands": [
        ("7", "We had 3 and 4; \\boxed{7}, not 8."),
        ("43", "The answer isn't 42, it's 43."),
        ("43", "It is not 42 but 43."),
        ("7", "**7**"),
        ("7", "Therefore, **the answer is 7**."),
        ("7", "Step 1: 3. Step 2: 4. So we get 7."),
        ("7", "#### 7"),
        ("7", "答案：7"),
        ("7", "所以答案是$7$。"),
        ("7", "The final answer is $7$. I hope it is correct."),
        ("7", "\\boxed{3}, wait, no: \\boxed{7}"),
        ("7", "Answer:\n\n\\[7\\]"),
        ("7", "\\fbox{7}"),
        ("1,2", "\\boxed{1} and \\boxed{2}"),
        ("1,2", "$\\boxed{1}$, $\\boxed{2}$"),
        ("7", "It costs $7 in total."),
        ("7", "$$x = 7$$"),
        ("7", "x = 7, which is prime."),
        ("7", "3 + 4 = 7"),
        ("7", "The sum of 3 and 4 is 7."),
        ("7", "There are 7 apples (see part 2)."),
        ("7", "\\boxed{\\text{The total is } 7}"),
        ("7", "\\boxed{7}\n\nThis was a long road of 12 steps."),
        ("28\\%", "$\\boxed{28}$ percent"),
        ("7", "Final Answer: The largest $n$ is 7."),
        ("7", "He has 7 marbles left."),
        ("18", "9 * 2 = <<9*2=18>>18 dollars"),
        ("7", "一共有7个。"),
    ],
}

DIFFERENT = {
    "numbers": [
        ("42", "41"),
        ("6.6e-34", "1.05e-34"),
        ("6.6e-34", "0"),
        ("1e-9", "2e-9"),
        ("17.48", "1748"),
        ("-1", "1"),
        ("0.5", "0.05"),
        ("1000", "1,00"),
        ("1/3", "0.33"),
        ("\\pi", "3.14"),
        ("\\sqrt{2}", "1.41"),
        ("123456", "123457"),
        ("1234567.8", "1234567.9"),
        ("2.5", "2,500"),
        ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}"),
        ("0", "10^{-30}"),
        ("0", "\\frac{1}{2004!}"),
        ("2^{100}", "1267650600228229401496703205377"),
        ("42", "\\boxed{41=42}"),
        ("42", "\\boxed{x = 41 = 42}"),
        ("5/2", "21/2"),
        ("10", "1010"),
    ],
    "units": [
        ("5 cm", "5 m"),
        ("5 hours", "5 minutes"),
        ("\\$5", "5 cents"),
        ("42\\%", "4.2"),
        ("42", "0.42"),
        ("0.42", "42"),
        ("5 cm", "5 cm^2"),
        ("5 kg", "5 km"),
    ],
    "structure": [
        ("(3,4)", "(4,3)"),
        ("(3,4)", "[3,4]"),
        ("[3,4)", "(3,4]"),
        ("1,2", "1"),
        ("1", "1,2"),
        ("1,2", "1,2,3"),
        ("\\{1,2\\}", "\\{1,3\\}"),
        ("(3,4)", "3"),
        ("x<3", "x>3"),
        ("x<3", "x\\le 3"),
        ("(-\\infty,3)", "(-\\infty,4)"),
        ("x=5", "y=5"),
        ("y=2x+3", "y=2x-3"),
        ("x < 1", "x > -1"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
        ("\\begin{pmatrix}a&b\\end{pmatrix}", "\\begin{pmatrix}b&a\\end{pmatrix}"),
        ("12:00", "1:00"),
        ("3:30 AM", "3:30 PM"),
        ("2:3", "3:2"),
        ("12:00", "12"),
        ("204_5", "204_6"),
        ("204_5", "54"),
        ("\\pm 3", "3"),
        ("(1,2),(3,4)", "(1,3),(2,4)"),
        ("\\emptyset", "0"),
        ("\\mathbb{R}", "(0,\\infty)"),
        ("x^2+y^2=4", "x^2+y^2=2"),
        ("x=4", "2x=4x"),
    ],
    "expressions": [
        ("x^2+1", "x^2-1"),
        ("\\sqrt{x^2}", "x"),
        ("3R^2", "3r^2"),
        ("ab", "a+b"),
        ("\\sin x", "\\cos x"),
        ("6-5i", "6+5i"),
        ("e^x", "e^{-x}"),
        ("1 - \\frac{1}{\\mathrm{e}}", "1 + \\frac{1}{\\mathrm{e}}"),
        ("f(x)", "f(y)"),
        ("\\infty", "-\\infty"),
        ("\\infty", "5"),
        ("2k", "2"),
    ],
    "words": [
        ("\\text{east}", "west"),
        ("\\text{(B)}", "\\text{(C)}"),
        ("Evelyn", "nylevE"),
        ("Yes", "No"),
        ("5", "five hundred"),
        ("\\text{even}", "uneven"),
        ("13", "三"),
    ],
    "no answer, hedged, denied": [
        ("42", "It is 41 or 42."),
        ("42", "\\boxed{41}, \\boxed{42}"),
        ("42", "\\boxed{41 \\text{ or } 42}"),
        ("42", "The answer is not 42."),
        ("42", "42 is wrong, it is 43."),
        ("42", "The answer isn't 42, it's 43."),
        ("42", "\\boxed{42}, no, \\boxed{43}"),
        ("42", "答案不是42，是43。"),
        ("42", "<think>42</think>43"),
        ("2", "AZYUK2A"),
        ("2", "In step 2 I gave up."),
        ("42", "Answer: 43. (Not 42.)"),
        ("42", "The answer is 42 or 43."),
        ("42", "Either 42 or 44 works; the answer: 44"),
        ("42", "答案是41或42"),
    ],
}


def flat(table: dict[str, list[tuple[str, str]]]) -> list:
    return [pytest.param(gold, reply, id=f"{name}: {gold} | {reply}"[:90]) for name, pairs in table.items() for gold, reply in pairs]


@pytest.mark.parametrize(("gold", "reply"), flat(SAME))
def test_what_equals_the_gold_answer_scores_one(maths, gold, reply):
    assert judged(maths, gold, reply) == Verdict(1.0, "correct")


@pytest.mark.parametrize(("gold", "reply"), flat(DIFFERENT))
def test_what_differs_scores_zero(maths, gold, reply):
    assert judged(maths, gold, reply).score == 0.0


@pytest.mark.parametrize("gold", [gold for table in (SAME, DIFFERENT) for pairs in table.values() for gold, _ in pairs])
def test_every_gold_answer_equals_itself(maths, gold):
    assert judged(maths, gold, gold) == Verdict(1.0, "correct")


@pytest.mark.parametrize("reply", ["", "I do not know.", "<think>42", "Let us see…", "\\boxed{}", "🎈"])
def test_a_reply_without_an_answer_is_counted_apart(maths, reply):
    assert judged(maths, "42", reply) == Verdict(0.0, UNPARSED)


@pytest.mark.parametrize("gold", [None, "", "???", "\\frac{", " . ", "\\text{}"])
def test_a_gold_answer_that_says_nothing_is_an_error(maths, gold):
    assert judged(maths, gold, gold or "").error


COMPARED = [  # gold, reply, score
    *[("3", rf"\boxed{{{said}}}", 0) for said in (
        r"\neq 3", "<3", "> 3", r"\leq 3", r"\geq 3", r"\text{not } 3", r"\text{less than } 3", r"\text{all real numbers except } 3",
        r"\text{at least }3", r"3 \text{ or less}", r"\text{fewer than }3", r"\text{anything but }3", r"3\text{ or greater}", "大于3",
        r"\text{no more than }3", r"3\text{ more than }x",
    )],
    ("3", "The answer is 3 or more.", 0), ("3", "The answer is at least 3.", 0), ("3", r"The answer is $\neq 3$.", 0), ("3", "不等于3", 0),
    ("3", "The answer is at least 3 of the apples in the basket by the door of the house.", 0),
    (r"\ge 3", r"\boxed{\le 3}", 0), (r"\text{at least }3", r"\text{at most }3", 0), ("3 or more", "3", 0), ("3 or more", "2 or more", 0),
    (r"\sqrt{2}", r"\boxed{x \ne \sqrt{2}}", 0), (r"\sqrt{2}", r"\boxed{\ne \sqrt{2}}", 0), (r"\frac12", r"\boxed{> \frac12}", 0),
    (r"\ge 3", r"\boxed{\ge 3}", 1), (r"\text{at least }3", r"\boxed{\geq 3}", 1), (r"x \ge 3", r"\boxed{\text{at least }3}", 1),
    ("3 or more", r"\boxed{\ge 3}", 1), ("x > 3", r"\boxed{> 3}", 1), (r"x \ne 3", r"\boxed{\text{all real numbers except }3}", 1),
    ("3", r"\boxed{= 3}", 1), ("3", r"\boxed{\approx 3}", 1), ("3", r"\boxed{3 \text{ more apples}}", 1), ("5", "5 fewer apples", 1),
    ("5", r"\boxed{5\ (\text{not }6)}", 1), ("12", "The answer is 12 but I could be wrong.", 1), ("3", "She needs at least 3 boxes.", 1),
    (r"\text{not enough information}", r"\boxed{\text{not enough information}}", 1),
]  # fmt: skip
TAKEN_BACK = [  # reply, the answer that it gives in the end
    (r"\boxed{3}. Wait, I made an error. The answer is 4.", "4"), ("\\boxed{3}\n\nActually, the correct answer is 4.", "4"),
    ("\\boxed{3}\n\nCorrection: the answer is 4.", "4"), (r"\boxed{3}. I made a mistake; it should be 4.", "4"),
    ("The answer is \\boxed{3}.\n\nOops, I was wrong. Final answer: 4", "4"), (r"\boxed{3}. Wait, let me check: 2+1 = 3. Yes.", "3"),
    ("\\boxed{3}\nActually, this was easy in 2 steps.", "3"), (r"\boxed{3}. The answer is 3. Note that 4 is even.", "3"),
    ("Answer: 3 (not 4)", "3"), ("3 (three apples)", "3"),
    ("The answer is 3.\n\nHuman: What is 2+2?\nAssistant: The answer is 4.", "3"), ("#### 3\n\nQuestion: next\nAnswer: x\n#### 4", "3"),
    ("She has 3 apples.\n\nUser: 2+2?\nAssistant: The answer is 4.", "3"), ("\\boxed{3}\n\nQuestion: more\n\\boxed{4}", "3"),
    ("We divide it in 2.\n\nProblem 1: 2+1 = 3\nProblem 2: 3+1 = 4\nAnswer: 4", "4"), ("Sure!\n\nQuestion: how many?\nAnswer: 4", "4"),
]  # fmt: skip
IN_PROSE = [  # a sentence, its answer
    ("12 apples were left after 5 days.", "12"), ("He drove a total of 45 miles from home at the end of the 4 hours.", "45"),
    ("Kylar needs to pay $64 for 16 glasses.", "64"), ("For 16 glasses Kylar needs to pay $64", "64"), ("He is 12 in 2 years.", "12"),
    ("Thus, there are a total of 9 + 6 = 15 liters of water out of the 24 liters.", "15"), ("There were 12 left on day 3.", "12"),
    ("So she will be 4 + 4 = 8 years old 4 years from now.", "8"),
    ("You will save $4 + $2 = $6 for 2 tubs of ice cream and 4 packets of milk.", "6"), ("In 5 days.", "5"), ("It happened at 3", "3"),
    ("The program had 366 downloads total over the three months.", "366"), ("It costs 5 per apple", "5"), ("He walked for 12 hours", "12"),
    ("He runs 3*60=180 meters 3 times a week, so 540 meters a week", "540"), ("5 apples for 4 each is 20", "20"),
    ("Since 1.76 is less than 2 inches, he will recycle this stick in 7 days.", "7"), ("She has 10 - 3 = 7 left after giving 3 away.", "7"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "reply", "score"), COMPARED)
def test_a_comparison_or_a_denial_is_no_value(maths, gold, reply, score):
    assert judged(maths, gold, reply).score == score


@pytest.mark.parametrize(("reply", "answer"), TAKEN_BACK)
def test_the_answer_that_stands_in_the_end_counts(maths, reply, answer):
    assert [judged(maths, gold, reply).score for gold in ("3", "4")] == [float(answer == "3"), float(answer == "4")]


@pytest.mark.parametrize(("reply", "answer"), IN_PROSE)
def test_the_number_that_a_sentence_is_about_counts(maths, reply, answer):
    assert judged(maths, answer, reply).score == 1.0


def test_a_long_reply_is_read_in_little_time(maths):
    import time

    started = time.process_time()
    for part in ("= 1 ", "so 1 ", "at least 3 ", "\n", "\nHuman:", "not ", "(one ", "3 for 3 ", "\\boxed{3} actually "):
        judged(maths, "5", part * (40_000 // len(part)))
    assert time.process_time() - started < 10


# --- what costs too much

LARGE = {
    "factorials": "10!!!",
    "a tower": "9^{9^{9^{9}}}",
    "a tall power": "2^{10^9}",
    "many digits": "7" * 5_000,
    "an exponent": "1e999999999",
    "brackets": "(" * 5_000 + "1" + ")" * 5_000,
    "open brackets": "(" * 50_000,
    "fractions": "\\frac{1}{" * 3_000 + "2" + "}" * 3_000,
    "a long sum": "1" + "+1" * 25_000,
    "a long list": ",".join("12" for _ in range(30_000)),
    "text": "word " * 20_000,
    "a sum of many terms": "\\sum_{k=1}^{1000000000} k",
    "a coefficient": "\\binom{100000000}{50000000}",
    "a function": "\\sin(10^{10^8})",
    "a tower of roots": "\\sqrt{" * 40 + "2" + "}" * 40,
    "a matrix power": "\\begin{pmatrix}1&1\\\\1&0\\end{pmatrix}^{1000000}",
}


@pytest.mark.parametrize("reply", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("wrap", ["\\boxed{%s}", "The answer is $%s$.", "%s"], ids=["boxed", "announced", "bare"])
def test_a_reply_that_costs_too_much_is_wrong_and_not_unscorable(maths, wrap, reply):
    for gold in ("42", "x^2+1", "(1,2)", "\\text{east}"):
        assert judged(maths, gold, wrap % reply).score == 0.0


def test_large_numbers_are_compared_where_their_size_allows_it(maths):
    assert judged(maths, "2^{1000000000}", "\\boxed{4^{500000000}}").score == 1.0
    assert judged(maths, "2^{1000000000}", "\\boxed{2^{1000000001}}").score == 0.0
    assert judged(maths, "20!", "2432902008176640000").score == 1.0


@pytest.mark.parametrize("gold", ["10!!!", "9^{9^{9^{9}}}", "7" * 5_000, "\\binom{100000000}{50000000}", "(" * 100 + "1" + ")" * 100])
def test_a_gold_answer_that_costs_too_much_is_an_error_whatever_the_reply(maths, gold):
    for reply in ("\\boxed{\\sqrt{7}+1}", "\\boxed{9^{9^{9^{8}}}}"):
        assert "too" in (judged(maths, gold, reply).error or "")


def test_what_the_clock_ends_is_an_error(monkeypatch):
    rule = MathRule(time_limit_seconds=0.5)
    try:
        assert judged(rule, "\\sqrt{2}", "\\boxed{2^{1/2}}").score == 1.0
        rule._worker.process.send_signal(19)  # SIGSTOP: a machine too busy to answer
        assert "took longer than 0.5 s" in (judged(rule, "\\sqrt{3}", "\\boxed{3^{1/2}}").error or "")
        assert judged(rule, "3", "3").score == 1.0
    finally:
        rule.close()
