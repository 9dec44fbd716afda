"""A vLLM server that samples for a trainer: what it has to be, which weights it has, and what becomes of it, on a real HTTP server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from itertools import chain

import pytest
import torch

from safework_cli.core.errors import ConfigError, InputError, RunAgain, SafeworkError
from safework_cli.core.signals import ENDING
from safework_cli.engines.load import engine_over
from safework_cli.engines.openai import key_of
from safework_cli.engines.protocol import Sampling
from safework_cli.engines.settings import ServerSettings
from safework_cli.engines.vllm import serve as serving
from safework_cli.engines.vllm.plugin import read_folder
from safework_cli.engines.vllm.served import ServedVllm, write_weights
from safework_cli.engines.vllm.server import VllmServer, differences
from safework_cli.models.load import load_model, load_tokenizer
from vllm_served import fake_vllm

pytestmark = pytest.mark.enable_socket
HELLO = [[1, 2, 3], [4, 5]]
SAMPLED = Sampling(6, 1.0, seed=3)


@pytest.fixture
def fake(tiny_model):
    with fake_vllm(tiny_model) as server:
        yield server


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def connect(fake, tiny_model, tmp_path):
    """An engine over the fake server; settings may be given."""

    def make(**given) -> ServedVllm:
        settings = ServerSettings(**{"url": fake.url, "start_timeout_s": 0.0, "timeout_s": 60.0} | given)
        server = VllmServer(settings, key_of(settings))
        return ServedVllm(server, tiny_model, load_tokenizer(tiny_model), dtype="float32", scratch=tmp_path / "served")

    return make


def test_replies_are_those_of_the_weights_that_were_sent(connect, tiny_model, fake, tmp_path):
    engine, model = connect(), load_model(tiny_model, dtype="float32")
    own = engine_over(model, engine.tokenizer)
    for step in range(2):
        engine.load_weights(model.named_parameters, f"run:{step}")
        replies, expected = engine.generate_ids(HELLO, SAMPLED, n=2), own.generate_ids(HELLO, SAMPLED, n=2)
        assert [[c.token_ids for c in group] for group in replies] == [[c.token_ids for c in group] for group in expected]
        for reply, same in zip(chain(*replies), chain(*expected), strict=True):
            assert reply.logprobs == pytest.approx(same.logprobs, abs=1e-5) and reply.text == same.text
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
    assert fake.weights == "run:1" and not list((tmp_path / "served").iterdir()), "files are removed when they have been read"
    asked = [body for path, body in fake.seen if path == "/v1/completions"]
    assert len({body["seed"] for body in asked[:4]}) == 4 and {body["top_k"] for body in asked} == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fake: setattr(fake, "version", "0.31.2"), r"is vLLM 0\.31\.2\n.*0\.30"),
        (lambda fake: setattr(fake, "version", "0.300.1"), r"is vLLM 0\.300\.1"),
        (lambda fake: fake.config["model_config"].update(dtype="torch.bfloat16"), "computes in bfloat16\n.*float32"),
        (lambda fake: fake.config["model_config"].update(logprobs_mode="raw_logprobs"), "returns raw_logprobs"),
        (lambda fake: fake.config["model_config"].update(hf_config='X {"vocab_size": 7}'), "another model\n.*vocab_size 7 in place of"),
        (lambda fake: fake.config.update(weight_transfer_config=None), "takes no weights by .*transfer=folder"),
        (lambda fake: fake.config.update(weight_transfer_config={"backend": "nccl"}), "takes no weights by .*transfer=folder"),
        (lambda fake: fake.fail.update({"/server_info": (404, {"detail": "Not Found"})}), "VLLM_SERVER_DEV_MODE"),
    ],
)
def test_a_server_that_was_started_otherwise_is_refused(change, message, fake, connect):
    change(fake)
    with pytest.raises(InputError, match=rf"(?s)the vLLM server at 127\.0\.0\.1:\d+ .*{message}") as refused:
        connect()
    assert "safework serve MODEL --transfer folder --dtype float32" in refused.value.do or "pip install 'vllm==0.30.*'" in refused.value.do


def test_other_weights_than_those_that_were_sent_are_an_error(fake, connect, tiny_model):
    engine, model = connect(), load_model(tiny_model, dtype="float32")
    engine.load_weights(model.named_parameters, "run:4")
    fake.weights = "default"  # it was restarted
    with pytest.raises(SafeworkError, match=r"other weights than those of this step \(version 'default' in place of 'run:4'\)"):
        engine.generate_ids(HELLO, SAMPLED)
    assert not [path for path, _ in fake.seen if path == "/v1/completions"]


def test_weights_that_change_during_a_rollout_are_an_error(fake, connect, tiny_model):
    engine, model = connect(), load_model(tiny_model, dtype="float32")
    engine.load_weights(model.named_parameters, "run:4")
    answer = fake.answer

    def takes_others(path, body):
        if path == "/v1/completions":
            fake.weights = "another-run:1"
        return answer(path, body)

    fake.answer = takes_others
    with pytest.raises(SafeworkError, match="'another-run:1'"):
        engine.generate_ids(HELLO, SAMPLED)


def test_a_server_that_hangs_is_named_with_its_last_lines(fake, connect, tiny_model, tmp_path):
    log = tmp_path / "server.log"
    log.write_text("".join(f"line {i}\n" for i in range(99)) + "CUDA error: \x1b[31millegal memory\n")
    engine = connect(timeout_s=0.5, log=str(log))
    engine._server.settings.timeout_s = 60.0
    engine.load_weights(load_model(tiny_model, dtype="float32").named_parameters, "run:0")
    engine._server.settings.timeout_s = 0.5
    fake.hang = {"/v1/completions"}
    with pytest.raises(
        RunAgain, match=r"127\.0\.0\.1:\d+ did not answer /v1/completions within 0\.5 s, although it answers /health"
    ) as hung:
        engine.generate_ids(HELLO, SAMPLED)
    assert hung.value.exit_code == 75
    assert (
        "line 98" in hung.value.why
        and "illegal memory" in hung.value.why
        and "line 80" not in hung.value.why
        and "\x1b" not in str(hung.value)
    )


def test_a_server_that_fails_or_was_never_there_ends_the_run_resumable(fake, connect, tiny_model):
    engine, model = connect(), load_model(tiny_model, dtype="float32")
    engine.load_weights(model.named_parameters, "run:0")
    fake.fail["/v1/completions"] = (500, {"error": {"message": "EngineCore encountered an issue"}})
    with pytest.raises(RunAgain, match="HTTP 500: EngineCore encountered an issue"):
        engine.generate_ids(HELLO, SAMPLED)
    with pytest.raises(RunAgain, match=r"the vLLM server at 127\.0\.0\.1:9 cannot be reached"):
        connect(url="http://127.0.0.1:9")


def test_a_connection_that_breaks_is_tried_again_while_the_server_is_well(fake, connect, tiny_model):
    engine = connect()
    engine.load_weights(load_model(tiny_model, dtype="float32").named_parameters, "run:0")
    fake.drop = ["/v1/completions"]
    assert len(engine.generate_ids(HELLO, SAMPLED)) == 2
    fake.drop = ["/v1/completions"] * 9
    with pytest.raises(RunAgain, match="cannot be reached"):
        engine.generate_ids(HELLO[:1], SAMPLED)


def test_a_folder_that_the_server_sees_otherwise_is_an_error(fake, connect, tiny_model, tmp_path):
    engine, answer = connect(), fake.answer
    fake.answer = lambda path, body: answer(
        path, {"update_info": {**body["update_info"], "folder": str(tmp_path)}} if path == "/update_weights" else body
    )
    with pytest.raises(RunAgain, match=r"HTTP 500: .* holds 0 weights here, and the trainer wrote \d+"):
        engine.load_weights(load_model(tiny_model, dtype="float32").named_parameters, "run:0")


def test_an_update_that_a_killed_run_left_open_is_closed(fake, connect, tiny_model):
    engine, answer, open_updates = connect(), fake.answer, ["of the killed run"]

    def one_at_a_time(path, body):
        if path == "/start_weight_update":
            if open_updates:
                raise FileNotFoundError("start_weight_update called while a weight update is already active")
            open_updates.append("ours")
        if path == "/finish_weight_update":
            open_updates.clear()
        return answer(path, body)

    fake.answer = one_at_a_time
    engine.load_weights(load_model(tiny_model, dtype="float32").named_parameters, "run:0")
    assert fake.weights == "run:0" and len(engine.generate_ids(HELLO, SAMPLED)) == 2


def test_the_key_is_sent_and_not_shown(fake, connect, monkeypatch):
    monkeypatch.setenv("SERVER_KEY", "abcdefgh12345secret")
    fake.fail["/health"] = (401, {"error": "abcdefgh12345secret is wrong"})
    with pytest.raises(InputError, match="HTTP 401") as refused:
        connect(api_key_env="SERVER_KEY")
    assert "abcdefgh" not in str(refused.value)


def test_weights_are_written_in_parts_and_read_back(tmp_path):
    weights = {f"w{i}": torch.randn(4, 4) for i in range(5)} | {"steps": torch.tensor([3])}
    (tmp_path / "a").mkdir()
    assert write_weights(weights.items(), tmp_path / "a", torch.bfloat16, shard_bytes=64) == 6
    assert len(list((tmp_path / "a").iterdir())) == 3
    read = dict(read_folder(tmp_path / "a", 6))
    assert read.keys() == weights.keys() and read["steps"].dtype == torch.int64
    assert all(torch.equal(read[name], weight.to(torch.bfloat16)) for name, weight in weights.items() if name != "steps")
    with pytest.raises(FileNotFoundError, match="holds 6 weights here, and the trainer wrote 7"):
        next(read_folder(tmp_path / "a", 7))


def test_where_two_shapes_differ():
    assert differences({"vocab_size": 5, "eos": 1}, {"vocab_size": 5, "eos": 2, "hidden_size": 3}) == ""
    assert differences({"text_config": {"hidden_size": 4}}, {"hidden_size": 3}) == "hidden_size 4 in place of 3"


# ---- starting one


def test_the_command_of_a_server_has_what_a_trainer_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(serving, "find_spec", lambda name: object())
    words = serving.server_command(tmp_path, "m@v1", host="127.0.0.1", port=8123, dtype="float32", transfer="folder", more=["--x", "2"])
    given = dict(zip(words[3:-2:2], words[4:-2:2], strict=False))
    assert given["--dtype"] == "float32" and given["--logprobs-mode"] == "processed_logprobs" and given["--port"] == "8123"
    assert json.loads(given["--weight-transfer-config"]) == {"backend": "safework"} and words[-2:] == ["--x", "2"]
    words = serving.server_command(tmp_path, "m@v1", host="127.0.0.1", port=8123, dtype="bfloat16", transfer="nccl")
    assert json.dumps({"backend": "nccl"}) in words and "bfloat16" in words


def test_a_server_that_ends_by_itself_is_an_error_with_its_last_lines(tmp_path):
    command = [sys.executable, "-c", "print('out of memory'); raise SystemExit(3)"]
    with pytest.raises(SafeworkError, match=r"(?s)ended with exit code 3.*out of memory"):
        serving.serve(command, "http://127.0.0.1:9", tmp_path / "logs" / "9.log", lambda: None)


SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Well(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Well).serve_forever()
"""


@pytest.mark.parametrize("number", ENDING)
def test_a_server_is_told_to_end_with_the_command(tmp_path, free_port, number):
    log, ready = tmp_path / "server.log", []

    def stop() -> None:
        ready.append(log.read_text())
        os.kill(os.getpid(), number)

    command = [sys.executable, "-u", "-c", SERVER, str(free_port)]
    url = f"http://127.0.0.1:{free_port}"
    assert serving.serve(command, url, log, stop) == 0
    assert len(ready) == 1 and "GET /health" in log.read_text() and not serving._answers(url)


def test_a_server_ends_with_an_error_of_its_command(tmp_path, free_port):
    """A closed stdout, such as that of a pipe whose reader has ended."""

    def closed() -> None:
        raise BrokenPipeError

    command = [sys.executable, "-u", "-c", SERVER, str(free_port)]
    url = f"http://127.0.0.1:{free_port}"
    with pytest.raises(BrokenPipeError):
        serving.serve(command, url, tmp_path / "server.log", closed)
    assert not serving._answers(url)


def test_a_server_that_was_left_is_not_taken_for_the_new_one(tmp_path, free_port):
    left = subprocess.Popen([sys.executable, "-u", "-c", SERVER, str(free_port)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{free_port}"
    try:
        while not serving._answers(url):
            assert left.poll() is None
            time.sleep(0.1)
        with pytest.raises(ConfigError, match=r"(?s)is in use.*--port"):
            serving.serve([sys.executable, "-c", "import time; time.sleep(5)"], url, tmp_path / "server.log", lambda: None)
    finally:
        left.kill()
        left.wait()


@pytest.mark.skipif(serving.find_spec("vllm") is not None, reason="vLLM is installed")
def test_serve_without_vllm_says_how_to_install_it(cli, tiny_artifact):
    result = cli("serve", tiny_artifact.ref)
    assert result.returncode == 2 and "safework serve needs vllm" in result.stderr and "safework[vllm]" in result.stderr
    wrong = cli("serve", tiny_artifact.ref, "--dtype", "float")
    assert wrong.returncode == 2 and "auto, float32" in wrong.stderr


def test_the_settings_for_a_run_are_what_serve_prints_on_stdout(tiny_artifact, store, monkeypatch, capfd):
    """A script takes them over: they are the result of the command."""
    from safework_cli.cli.serve import command

    monkeypatch.setattr(serving, "server_command", lambda *_, **__: ["vllm"])
    monkeypatch.setattr(serving, "serve", lambda words, url, log, ready: ready() or 0)
    command().main([tiny_artifact.ref, "--port", "8123", "--store", str(store.root)], standalone_mode=False)
    settings = f"engine.kind=vllm engine.server.url=http://127.0.0.1:8123 engine.server.transfer=folder engine.server.log={store.root}"
    assert capfd.readouterr().out == f"{settings}/.servers/8123.log\n"
