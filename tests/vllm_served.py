"""A server on 127.0.0.1 that speaks vLLM's protocol for rollouts and weights, computes with transformers, and misbehaves on request.

It takes weights from the folder that a request names, as safework's plugin in vLLM does: what it samples is what those weights give.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from safework_cli.engines.load import engine_over
from safework_cli.engines.protocol import Completion, Sampling
from safework_cli.engines.vllm.plugin import read_folder
from safework_cli.engines.vllm.server import TOKENS
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.processors import encode_images, load_processor


class FakeVllm:
    """What the server knows, for tests to change.

    Attributes:
        url: where it is.
        seen: (path, body) of each request.
        version: of vLLM; config: what /server_info states; weights: the version of the weights.
        hang: paths that are answered after 30 s; fail: path → status and body; drop: paths whose next connection is closed.
        images: that were sent, by their names.
    """

    def __init__(self, folder: Path, dtype: str = "float32"):
        self.url, self.seen, self.lock = "", [], threading.Lock()
        self.version, self.weights = "0.30.0", "default"
        self.config: dict[str, Any] = {
            "model_config": {
                "dtype": f"torch.{dtype}",
                "logprobs_mode": "processed_logprobs",
                "max_model_len": 4096,
                "hf_config": "LlamaConfig " + (folder / "config.json").read_text(),
            },
            "weight_transfer_config": {"backend": "safework"},
        }
        self.hang: set[str] = set()
        self.fail: dict[str, tuple[int, Any]] = {}
        self.drop: list[str] = []
        self.images: dict[str, Any] = {}
        self.tokenizer, self.model, self.processor = load_tokenizer(folder), load_model(folder, dtype="float32"), load_processor(folder)
        torch.manual_seed(7)
        with torch.no_grad():  # its own weights are others than the trainer's: only what was sent makes it right
            for weight in self.model.parameters():
                weight.add_(torch.randn_like(weight))

    def answer(self, path: str, body: Any) -> Any:
        """The JSON answer to a request."""
        if path == "/version":
            return {"version": self.version}
        if path == "/server_info":
            return {"vllm_config": self.config}
        if path == "/v1/models":
            return {"data": [{"id": "served"}]}
        if path == "/weight_info":
            return {"weight_version": self.weights}
        if path == "/update_weights":
            given = body["update_info"]
            self.model.load_state_dict(dict(read_folder(Path(given["folder"]), given["weights"])), strict=False)
        if path == "/finish_weight_update":
            self.weights = body.get("weight_version", self.weights)
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/v1/completions":
            made = self.reply(body["prompt"], None, body)
            choice = {"index": 0, "finish_reason": made.finish_reason, "token_ids": made.token_ids}
            return {"choices": [choice | {"logprobs": {"token_logprobs": made.logprobs}}]}
        if path == TOKENS and body:
            for part in body["content_parts"]:
                if part["url"]:
                    self.images[part["uuid"]] = {"bytes": base64.b64decode(part["url"].partition(",")[2]), "path": None}
                elif part["uuid"] not in self.images:
                    raise KeyError("Cache miss for image at index 0 but data is not provided.")
            images = [self.images[part["uuid"]] for part in body["content_parts"]]
            ids, vision = encode_images(self.processor, self.tokenizer.decode(body["token_ids"]), images)
            made = self.reply(ids, vision, body["sampling_params"])
            choice = {"index": 0, "finish_reason": made.finish_reason, "token_ids": made.token_ids}
            logprobs = {"content": [{"logprob": value} for value in made.logprobs]}
            return {"choices": [choice | {"logprobs": logprobs}], "prompt_token_ids": ids}
        return {}

    def reply(self, ids: list[int], vision: Any, given: dict[str, Any]) -> Completion:
        """The reply to a prompt by vLLM's sampling parameters."""
        sampling = Sampling(given["max_tokens"], given["temperature"], given.get("top_p", 1.0), logprobs_at=given["temperature"] or 1.0)
        with self.lock:
            engine = engine_over(self.model, self.tokenizer, processor=self.processor)
            ((made,),) = engine.generate_ids([ids], sampling, visions=[vision], seeds=[[given["seed"] or 0]])
        return made


@contextmanager
def fake_vllm(folder: Path, dtype: str = "float32") -> Iterator[FakeVllm]:
    """The server, over the shape of the model in a folder, while the body runs."""
    fake = FakeVllm(folder, dtype)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._do(None)

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self._do(json.loads(self.rfile.read(length)) if length else None)

        def _do(self, body: Any) -> None:
            path = self.path.partition("?")[0]
            fake.seen.append((path, body))
            if path in fake.drop:
                fake.drop.remove(path)
                self.close_connection = True
                return
            if path in fake.hang:
                time.sleep(30)
            status, given = fake.fail.get(path, (200, None))
            if status == 200:
                try:
                    given = fake.answer(path, body)
                except FileNotFoundError as error:
                    status, given = 500, {"error": {"message": str(error)}}
                except KeyError as error:
                    status, given = 400, {"error": {"message": str(error)}}
            try:
                sent = json.dumps(given).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a client that did not wait

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
