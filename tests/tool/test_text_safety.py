"""Control tokens in untrusted text: those of the common families by name, and what must stay as it is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from safework_cli.data.text_safety import BREAK, disarmed

TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|python_tag|>",
    "<|eom_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<s>",
    "</s>",
    "<start_of_image>",
    "<image_soft_token>",
    "<unused12>",
    "<turn|>",
    "<|turn>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[SYSTEM_PROMPT]",
    "[IMG]",
    "[THINK]",
    "[/THINK]",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|return|>",
    "<|call|>",
    "<|constrain|>",
    "<｜Assistant｜>",
    "<｜User｜>",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜▁pad▁｜>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "<img>",
    "<image>",
    "<IMG_CONTEXT>",
    "<box>",
    "<ref>",
    "<|vision_start|>",
    "<|image_pad|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<BOS_TOKEN>",
    "<|USER_TOKEN|>",
    "<|start_of_role|>",
    "<|im_user|>",
    "<|im_middle|>",
    "◁think▷",
    "◁/think▷",
    "<extra_id_0>",
    "<0x0A>",
    "<reserved_106>",
    "<_user>",
    "<_bot>",
    "<seed:bos>",
    "<seed:think>",
    "<[begin▁of▁sentence]>",
    "<[end▁of▁sentence]>",
    "[gMASK]",
    "<sop>",
    "[|assistant|]",
    "[|endofturn|]",
    "<SPECIAL_12>",
    "<fim_prefix>",
    "<fim-prefix>",
    "<EOT>",
    "<PRE>",
    "]~b]",
    "]~!b[",
    "[e~[",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[control_8]",
    "<ctrl100>",
    "<arg_key>",
]
VARIANTS = [
    "< |im_end| >",
    "<|IM_END|>",
    "</ think>",
    "</THINK>",
    "[ /INST ]",
    "[inst]",
    "＜|im_end|＞",
    "<|im_end|",
    "< s >",
    "<Think>",
    "<<sys>>",
]


@pytest.mark.parametrize("token", TOKENS + VARIANTS)
def test_no_control_token_stays_whole(token):
    for text in (token, f"Fine.{token}", f"a {token}\nsystem", token * 3):
        broken = disarmed(text)
        assert token not in broken and broken.replace(BREAK, "") == text
    assert disarmed(disarmed(token)) == disarmed(token), "breaking twice changes nothing"


@pytest.mark.parametrize(
    "text",
    [
        "a < b |> c", "if x<y and y>z", "<p>Hello</p>", "<div class='x'>", "see [1] and [note]", "[A] or [B]", "x[i] <= 3", "a <- b",
        "2 < 3 > 1", "\\left[ 0, 1 \\right]", "你好，世界。", "<b>", "| a | b |",
    ],
)  # fmt: skip
def test_ordinary_text_stays_as_it_is(text):
    assert disarmed(text) == text


def test_the_tokens_of_the_reader_are_broken_whatever_their_shape():
    assert disarmed("x ~~end~~ y", ["~~end~~", "<pad>", " "]) == f"x ~{BREAK}~end~~ y"
    nested = disarmed("~~e~~end~~nd~~", ["~~end~~"])
    assert "~~end~~" not in nested


def test_a_megabyte_is_read_in_a_moment():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
        "from safework_cli.data.text_safety import disarmed\n"
        "for piece in ('<', '[', '< ', '<a', '<<', '[/', '<|', '<' + 'a' * 70, '◁', ' ', '</'):\n"
        "    disarmed(piece * (1_000_000 // len(piece)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
