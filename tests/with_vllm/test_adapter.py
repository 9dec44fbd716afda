"""vLLM adds a kept adapter by its own LoRA support: the same tokens and log-probabilities as base and adapter in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from safework_cli.core.artifacts.transfer import import_folder
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.engines.load import load_token_engine
from safework_cli.engines.protocol import Sampling
from safework_cli.engines.settings import EngineSettings
from safework_cli.models.adapters import adapter_of, merged
from safework_cli.models.layers import lora_config
from safework_cli.models.load import load_model, load_tokenizer, save_model
from safework_cli.training.config import Lora

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm test-vllm")

ASKED = [[{"role": "user", "content": f"What is {number}+1?"}] for number in range(4)]


@pytest.fixture
def kept(store, commit, tiny_model, tmp_path):
    """(adapter, adapter of the adapter) of a tiny model whose heads are wide enough for vLLM."""
    tokenizer = load_tokenizer(tiny_model)
    small = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=None, **small)
    save_model(LlamaForCausalLM(config), tokenizer, tmp_path / "base")
    made = [import_folder(store, tmp_path / "base", "base")]
    for name in ("first", "second"):
        model = load_model(made[-1].path, dtype="float32")
        adapted = get_peft_model(model, lora_config(Lora(r=4, alpha=8, keep="adapter"), model))
        for parameter, weight in adapted.named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(weight, std=0.1)
        adapter, folder = adapter_of(adapted, made[-1]), store.staging()
        save_model(merged(adapted), tokenizer, Path(folder), adapter=adapter)
        made.append(commit(folder, "model", name))
    return made[1:]


def test_tokens_and_log_probabilities_are_those_of_transformers(kept, share):
    first, second = kept
    vllm = EngineSettings(kind="vllm", vllm={"gpu_memory_utilization": share, "max_model_len": 256})
    ours = load_token_engine(EngineSettings(), first.path, dtype="float32")
    theirs = load_token_engine(vllm, first.path, dtype="float32")
    greedy = Sampling(max_tokens=16, temperature=0.0)
    wanted, given = ([group[0] for group in engine.generate(ASKED, greedy)] for engine in (ours, theirs))
    assert [one.token_ids for one in given] == [one.token_ids for one in wanted]
    gaps = [abs(a - b) for one, other in zip(given, wanted, strict=True) for a, b in zip(one.logprobs, other.logprobs, strict=True)]
    if torch.cuda.is_available():
        scored = theirs.score(ASKED, [one.token_ids for one in wanted])
        gaps += [abs(a - b) for row, one in zip(scored, wanted, strict=True) for a, b in zip(row, one.logprobs, strict=True)]
    else:
        with pytest.raises(ConfigError, match="no log-probabilities of given tokens where the model is an adapter"):
            theirs.score(ASKED, [one.token_ids for one in wanted])
    print(f"an adapter: greedy {len(given)}/{len(wanted)} equal, gap mean {sum(gaps) / len(gaps):.1e}, largest {max(gaps):.1e}")
    assert max(gaps) <= 2e-4 and sum(gaps) / len(gaps) <= 2e-5
    with pytest.raises(InputError, match=r"is an adapter of an adapter(.|\n)*safework models merge"):
        load_token_engine(vllm, second.path, dtype="float32")
