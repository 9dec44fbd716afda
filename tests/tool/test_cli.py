"""The commands as a person or a script meets them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest

from conftest import SAFEWORK, cli_environment


def test_stdout_is_the_reference_alone_and_the_second_run_is_done_already(cli):
    first = cli("models", "pull", "tiny")
    again = cli("models", "pull", "tiny")
    assert (first.stdout, again.stdout) == ("model/tiny-llama@v1\n",) * 2
    assert "already done" in again.stderr and first.returncode == again.returncode == 0


def test_json_is_one_object(cli):
    found = json.loads(cli("models", "pull", "tiny", "--json", "-q").stdout)
    assert found["ref"] == "model/tiny-llama@v1" and found["already"] is False and found["config"]["source"] == "tiny"


def test_bad_input_is_one_clear_line_with_its_code(cli, tiny_artifact, toy_data):
    cases = [
        (("sft", "model=tiny", "data=toy:cot", "learning_rte=1"), 2, "did you mean 'learning_rate'"),
        (("sft", "model=tiny", "data=toy:cot", "learning_rate=fast"), 2, "learning_rate must be a number"),
        (("sft", "model=tiny"), 3, "needs data="),
        (("sft", "model=tny", "data=toy:cot"), 3, "did you mean 'model/tiny'"),
        (("sft", "model=toy", "data=toy:cot"), 3, "of another kind"),
        (("sft", "model=tiny", "data=toy"), 3, "several subsets"),
        (("sft", "model=hf:org/none", "data=toy:cot"), 3, "out of reach"),
        (("sft", "model=tiny", "data=toy:cot", "-c", "nowhere.yaml"), 3, "no recipe at nowhere.yaml"),
        (("models", "pull", "smolm2"), 2, "no model source 'smolm2'"),
        (("artifacts", "show", "nothing"), 3, "no artifact 'nothing'"),
        (("sfft",), 2, "did you mean 'sft'"),
    ]
    for words, code, message in cases:
        done = cli(*words)
        assert (done.returncode, done.stdout) == (code, ""), (words, done.stderr)
        assert message in done.stderr and "Traceback" not in done.stderr, (words, done.stderr)


def test_dry_run_shows_every_value_with_its_source_and_does_nothing(cli, tiny_artifact, toy_data, store):
    done = cli("sft", "model=tiny", "data=toy:cot", "max_steps=3", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["settings"]["max_steps"] == {"value": 3, "source": "command line"} and plan["settings"]["seed"]["source"] == "default"
    assert plan["inputs"] == {"model": "model/tiny@v1", "data": "dataset/toy@v1:cot"} and plan["already"] is None
    assert len(store.list()) == 2


def test_no_run_reports_itself_to_the_hub():
    code = (
        "import sys; from safework_cli.cli.main import main; sys.argv[1:] = ['artifacts', 'ls']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "from huggingface_hub import constants; sys.exit(0 if constants.HF_HUB_DISABLE_TELEMETRY else 1)"
    )
    kept = {
        name: value for name, value in os.environ.items() if name not in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
    }
    assert subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, timeout=120).returncode == 0


def test_a_flipped_byte_stops_the_next_stage(cli, tiny_artifact, toy_data):
    file = tiny_artifact.path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    done = cli("sft", "model=tiny", "data=toy:cot")
    assert done.returncode == 3 and "the bytes of model.safetensors changed" in done.stderr
    assert cli("artifacts", "verify").returncode == 3


def test_artifacts_can_be_looked_at(cli, tiny_artifact, toy_data):
    assert "model/tiny@v1" in cli("artifacts", "ls").stdout
    assert json.loads(cli("artifacts", "show", "tiny", "--json").stdout)["name"] == "tiny"
    assert [a["ref"] for a in json.loads(cli("artifacts", "ls", "--kind", "dataset", "--json").stdout)] == ["dataset/toy@v1"]
    assert cli("artifacts", "verify").returncode == 0


def test_doctor_finds_a_folder_that_hides_a_package(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")  # a package that doctor imports prints a line then
    (tmp_path / "vllm").mkdir()
    done = cli("doctor", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == 3 and not found["healthy"]
    assert not any("safework[" in f["do"] for f in found["findings"]), "nothing is offered that no stage uses"
    assert any("hides the package vllm" in f["text"] and f["do"] == "mv vllm vllm-files" for f in found["findings"])


@pytest.mark.parametrize(("supported", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_doctor_says_in_which_type_the_processor_multiplies(supported, dtype, monkeypatch):
    from safework_cli.cli.doctor import _devices

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: supported)
    (found,) = _devices()
    assert found.text.endswith(f"products in {dtype}")


def test_doctor_reports_the_processor_without_transformers(monkeypatch):
    from safework_cli.cli.doctor import _devices

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    (found,) = _devices()
    assert found.text.startswith("CPU, ") and "products" not in found.text


@pytest.mark.skipif(find_spec("rapidocr") is not None, reason="rapidocr is installed")
def test_doctor_names_what_is_missing_of_the_reader_of_text_in_images(tmp_path, monkeypatch):
    from safework_cli.cli.doctor import _extras

    assert not any(f.what == "text in images" for f in _extras()), "nobody asked for it"
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("class InferenceSession: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = [f for f in _extras() if f.what == "text in images"]
    sys.modules.pop("onnxruntime", None)
    assert found.level == "note" and "No module named 'rapidocr'" in found.text and found.do == "pip install 'safework[ocr]'"


def test_a_file_behind_the_settings_is_part_of_the_run(cli, tmp_path):
    rows = tmp_path / "rows.jsonl"
    source = f"sources=[{{kind: file, path: {rows}, subset: rl, task: general, columns: {{prompt: q}}, licence: none}}]"
    for text, version, already in (("one", "v1", False), ("one", "v1", True), ("two", "v2", False)):
        rows.write_text(json.dumps({"q": f"Is this {text}?"}) + "\n")
        done = cli("data", "build", source, "--name", "mine")
        assert done.stdout == f"dataset/mine@{version}\n" and ("already done" in done.stderr) is already, done.stderr


@pytest.mark.parametrize("words", [("models", "pull", "tiny"), ("artifacts", "ls"), ("runs", "ls"), ("report",), ("sft", "model=tiny")])
def test_an_empty_store_is_not_the_working_folder(cli, words, tmp_path):
    done = cli(*words, "--store", "", cwd=tmp_path)
    assert done.returncode == 3 and "--store is empty" in done.stderr and list(tmp_path.iterdir()) == []


def test_what_is_set_for_a_command_of_models_counts(cli):
    assert cli("models", "pull", "tiny", "name=foo").stdout == "model/foo@v1\n"
    assert cli("models", "pull", "tiny", "name=foo", "--name", "bar").stdout == "model/bar@v1\n"
    refused = cli("models", "pull", "tiny", "slurm.time=10")
    assert refused.returncode == 2 and "models pull is not submitted as a Slurm job, and slurm is given (command line)" in refused.stderr


@pytest.fixture
def of_models(store):
    """Runs ``models`` with variables of the environment, which ``cli`` leaves out."""

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = cli_environment(store) | variables
        return subprocess.run([*SAFEWORK, *words], env=environment, capture_output=True, text=True, timeout=120)

    return run


def test_a_variable_is_not_overwritten_by_an_option_that_was_not_given(of_models):
    done = of_models("models", "pull", "tiny", SAFEWORK_MODELS_PULL__NAME="foo", SAFEWORK_MODELS_PULL__ARCHITECTURE="qwen2")
    assert done.stdout == "model/foo@v1\n", done.stderr
    manifest = json.loads(of_models("artifacts", "show", "foo", "--json").stdout)
    assert manifest["config"]["architecture"] == "qwen2"
    refused = of_models("models", "pull", "tiny", SAFEWORK_MODELS_PULL__SLURM__TIME="10")
    assert refused.returncode == 2 and "slurm is given ($SAFEWORK_MODELS_PULL__SLURM__TIME)" in refused.stderr


def test_a_dry_run_of_models_builds_nothing(cli, store, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"What is {n}?", "reply": "It is so."}) + "\n" for n in range(4)))
    done = cli("models", "pull", "tiny", f"data={rows}", "tiny.vocabulary=300", "--dry-run")
    assert done.returncode == 0 and not store.list(), done.stderr


def test_the_same_line_on_a_newer_version_names_the_run_it_leaves(cli, kill_after, store, tiny_model, tiny_artifact, toy_data):
    from safework_cli.core.artifacts.transfer import import_folder

    line = ("sft", "model=tiny", "data=toy:cot", "bf16=false", "sample_prompts=0", "per_device_train_batch_size=4", "save_steps=1")
    kill_after(2, *line, "max_steps=60")
    changed = shutil.copytree(tiny_model, store.root / "changed")
    (changed / "config.json").write_text((changed / "config.json").read_text() + "\n")
    import_folder(store, changed, "tiny")
    again = cli(*line, "max_steps=60")
    assert again.returncode == 0 and "with model model/tiny@v1 → model/tiny@v2; this one starts from scratch" in again.stderr, again.stderr
    assert "(the same command with model=model/tiny@v1 continues that one)" in again.stderr
    other = cli(*line, "max_steps=60", "seed=1")
    assert "continues that one" not in other.stderr
    continued = cli(*line, "max_steps=60", "model=model/tiny@v1")
    assert continued.returncode == 0 and "resumed at step" in continued.stderr


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_while_the_inputs_are_read_ends_with_75(store, tiny_artifact, toy_data, number):
    slow = "import time, safework_cli.core.artifacts.store as s\ns.verify = lambda *_: (print('reading', flush=True), time.sleep(60))\n"
    command = [sys.executable, "-c", f"{slow}from safework_cli.cli.main import main; main()", "sft", "model=tiny", "data=toy:cot"]
    process = subprocess.Popen(command, env=cli_environment(store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "reading\n"
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and f"stopped by {number.name} before anything was done" in said
