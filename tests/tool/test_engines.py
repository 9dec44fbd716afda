"""Engines are made in one place, from settings; a stage that needs token ids is refused an engine that has none."""

import ast
from pathlib import Path

import pytest

from safework_cli.core.config import result_settings
from safework_cli.core.errors import ConfigError
from safework_cli.engines.load import engine_over, load_engine, load_token_engine
from safework_cli.engines.protocol import Sampling
from safework_cli.engines.settings import EngineSettings
from safework_cli.models.load import load_model, load_tokenizer
from served import served

ROOT = Path(__file__).parents[2]
HELLO = [[{"role": "user", "content": "Hello"}]]
SERVED = {"kind": "openai", "url": "http://127.0.0.1:9/v1", "model": "m"}


def calls(name: str) -> set[str]:
    """The source files, relative to the repository, that call a function or class of this name."""
    files = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == name:
                files.add(str(path.relative_to(ROOT)))
    return files


@pytest.mark.parametrize("name", ["HFEngine", "OpenAIEngine"])
def test_engines_are_made_in_one_file(name):
    assert calls(name) == {"src/safework_cli/engines/load.py"}


def test_a_model_is_loaded_for_generation_in_one_file():
    """The other callers train the model, compare it with another one, merge an adapter into it, or read a verdict from its logits."""
    trained = {f"stages/{name}" for name in ("safework_rl/run.py", "safework_sft/run.py")}
    trained |= {f"stages/safework_verifier/{name}/run.py" for name in ("train", "values", "wrap")}
    merged = "src/safework_cli/models/merge.py"
    assert calls("load_model") == {"src/safework_cli/engines/load.py", "src/safework_cli/verifiers/load.py", merged, *trained}


def test_the_settings_say_which_engine_it_is(tiny_model):
    local = load_engine(EngineSettings(), tiny_model, dtype="float32", batch_size=3)
    assert (local.name, local.batch_size) == ("transformers/float32", 3)
    ((completion,),) = local.generate(HELLO, Sampling(max_tokens=2))
    assert completion.tokens == len(completion.token_ids) == 2 and completion.prompt_tokens == len(completion.prompt_ids) > 0
    with served(lambda request: "hi") as (url, _):
        remote = load_engine(EngineSettings(kind="openai", url=url, model="m", concurrency=5), None)
        ((completion,),) = remote.generate(HELLO, Sampling())
    assert (remote.name, remote.batch_size, remote.template_hash) == (f"m at {url}", 5, None)
    assert (completion.text, completion.token_ids) == ("hi", [])
    with pytest.raises(ConfigError, match=r"engine\.kind=hf needs a model"):
        load_engine(EngineSettings(), None)
    with pytest.raises(ConfigError, match="no token ids"):
        load_token_engine(EngineSettings(**SERVED), tiny_model)


def test_a_prompt_that_cannot_be_used_does_not_end_the_others(tiny_model):
    engine = engine_over(load_model(tiny_model, dtype="float32"), load_tokenizer(tiny_model))
    engine.model.config.max_position_embeddings = 64
    long = [{"role": "user", "content": "word " * 200}]
    separate = engine.generate(HELLO, Sampling(max_tokens=4, temperature=1.0, seed=3), n=2)
    mixed = engine.generate([long, *HELLO, long], Sampling(max_tokens=4, temperature=1.0, seed=3), n=2)
    assert [[c.finish_reason for c in group] for group in (mixed[0], mixed[2])] == [["too_long"] * 2] * 2
    assert "64 positions" in mixed[0][0].error and mixed[0][0].text == ""
    assert [c.token_ids for c in mixed[1]] == [c.token_ids for c in separate[0]]
    own = engine.generate([long, *HELLO], Sampling(max_tokens=4, temperature=1.0, seed=3), seeds=[[1], [2]])
    assert own[1][0].token_ids == engine.generate(HELLO, Sampling(max_tokens=4, temperature=1.0), seeds=[[2]])[0][0].token_ids


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"url": "http://127.0.0.1/v1"}, r"add engine\.kind=openai"),
        ({"kind": "openai"}, r"engine\.url=http://HOST:PORT/v1 engine\.model=NAME"),
        ({"kind": "openai", "url": "127.0.0.1", "model": "m"}, "must begin with http"),
        ({"kind": "openai", "url": "http://user:key@127.0.0.1/v1", "model": "m"}, "must hold no key"),
        ({"kind": "open-ai"}, "'hf', 'vllm' or 'openai'"),
    ],
)
def test_settings_that_do_not_fit_together(block, message):
    with pytest.raises(ValueError, match=message):
        EngineSettings(**block)


@pytest.mark.parametrize("stage", [("data", "cot"), ("verifier", "wrap"), ("verifier", "rollouts"), ("search",)])
def test_the_old_endpoint_block_shows_the_new_form(cli, stage):
    result = cli(*stage, "--dry-run", "endpoint.url=http://127.0.0.1/v1", "endpoint.model=m")
    assert result.returncode == 2 and "'endpoint.url' is now 'engine.url', 'endpoint.model' is now 'engine.model'" in result.stderr
    assert "write engine.kind=openai engine.url=http://127.0.0.1/v1 engine.model=m\n" in result.stderr


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (("search",), ("guide.refusal=rule:refusal",)),
        (("verifier", "rollouts"), ("rules.safety=refusal",)),
    ],
)
def test_a_stage_of_tokens_refuses_a_served_model(cli, stage, words, tiny_artifact, toy_data):
    slot = "prompts" if stage == ("search",) else "data"
    engine = [f"engine.{key}={value}" for key, value in SERVED.items()]
    result = cli(*stage, f"model={tiny_artifact.ref}", f"{slot}={toy_data.ref}:rl", *words, *engine)
    assert result.returncode == 2 and f"safework {' '.join(stage)} cannot use engine.kind=openai" in result.stderr
    assert "log-probabilities" in result.stderr and "engine.kind=hf" in result.stderr


def test_how_many_requests_are_sent_at_once_is_not_part_of_a_result_and_what_lets_a_request_fail_is():
    plain = result_settings(EngineSettings(**SERVED))
    assert result_settings(EngineSettings(**SERVED, concurrency=64)) == plain
    assert result_settings(EngineSettings(**SERVED, timeout_s=600.0)) != plain
    assert result_settings(EngineSettings(**SERVED, max_retries=9)) != plain
