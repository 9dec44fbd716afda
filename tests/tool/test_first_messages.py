"""What a newcomer with a table and a model folder types first, and whether the answer takes him on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def here(tmp_path: Path, tiny_model: Path, monkeypatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(tiny_model, home / "mymodel")
    lines = [{"prompt": f"What is {n} plus {n + 1}?", "response": f"The sum is {2 * n + 1}."} for n in range(12)]
    (home / "my.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(home)
    return home


def source(**changes) -> str:
    given = {"kind": "file", "path": "my.jsonl", "subset": "sft", "task": "general", "columns": {"prompt": "prompt", "reply": "response"}}
    return "sources=" + json.dumps([{key: value for key, value in (given | changes).items() if value is not None}])


def test_each_message_names_the_next_step(here, cli):
    def refused(*words: str) -> str:
        done = cli(*words)
        assert done.returncode in (2, 3) and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    pulled = refused("models", "pull", "./mymodel")
    assert "model=./mymodel" in pulled and "safework artifacts import ./mymodel" in pulled and "hf:./" not in pulled
    assert "safework artifacts import ./mymodel" in refused("models", "pull", "mymodel")
    assert "did you mean 'smollm2'" in refused("models", "pull", "smolm2")
    assert "hf:org/model" in refused("models", "pull", "org/model")
    (here / "odd.jsonl").write_text('{"q": "Why?", "a": "So."}\n')
    odd = refused("sft", "model=./mymodel", "data=./odd.jsonl")
    assert f"data build sources='[{{kind: file, path: \"{here}/odd.jsonl\", task: general, columns: {{prompt: q, reply: a}}}}]'" in odd
    assert "unknown key 'sources.0.colums'; did you mean 'sources.columns'" in refused("data", "build", source(colums={}))
    assert "'response' is not a field of a row; write columns: {prompt: prompt, reply: response} (fields, which" in refused(
        "data", "build", source(columns={"prompt": "prompt", "response": "response"})
    )
    assert "no column 'respons'; did you mean 'response'?" in refused(
        "data", "build", source(columns={"prompt": "prompt", "reply": "respons"})
    )
    thoughts = refused("data", "build", source(subset="cot"))
    assert "require_thought='[]'" in thoughts and "another name (such as sft)" in thoughts
    assert cli("data", "build", source(), "heldout=0.3").returncode == 0
    assert "write dataset/my@v1:sft (of heldout, sft)" in refused("sft", "model=./mymodel", "data=my")
    assert "suites='[{name: mine, rows: {task: general}}]'" in refused("eval", "model=./mymodel", "data=my:heldout")
    golds = refused("eval", "model=./mymodel", "data=my:heldout", "suites=[{name: mine, rows: {task: general}}]")
    assert "columns: {answer: COLUMN}, constants: {meta.answer_type: exact}" in golds


@pytest.mark.parametrize(
    ("settings", "way"),
    [
        ({"max_characters": 5}, "raise max_characters"),
        ({"languages": ["zh"]}, "relax languages"),
        ({"require_label": ["sft"]}, "map a column to meta.label, or relax require_label"),
    ],
)
def test_a_build_that_leaves_no_row_names_the_rule_to_relax(here, work, settings, way):
    from safework_cli.core.errors import InputError
    from safework_cli.core.stage import Inputs
    from safework_data.build.stage import stage

    config = stage.Config.model_validate({"sources": json.loads(source().removeprefix("sources=")), **settings})
    with pytest.raises(InputError) as error:
        stage.run(config, Inputs({}), work)
    assert error.value.do == way
