"""A vLLM server over HTTP: requests with deadlines, errors that name it, and what it has to be to sample for a trainer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from safework_cli.core.errors import InputError, RunAgain
from safework_cli.core.terminal import visible
from safework_cli.engines.openai import bounded_client, each_answer
from safework_cli.engines.settings import ServerSettings
from safework_cli.engines.vllm.over_vllm import SAMPLED_LOGPROBS
from safework_cli.engines.vllm.plugin import BACKEND
from safework_cli.engines.vllm.serve import LAST_LINES, last_lines

VERSIONS = ("0.30",)
"""Versions of vLLM whose interfaces for weights are those that are used here."""
HEALTH_SECONDS = 10.0
"""Deadline of a question about the server itself."""
ATTEMPTS = 3
"""Of a request for a reply whose connection breaks while the server is in good health: it closes idle connections."""
ARCHITECTURE = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "tie_word_embeddings",
)  # fmt: skip
"""Keys of config.json by which two models differ in their weights."""


COMPLETIONS, TOKENS = "/v1/completions", "/inference/v1/generate"
"""Where replies are asked for: to token ids, and to token ids with images."""
NOT_THERE = 404
FORGOTTEN = "Cache miss"
"""In vLLM's refusal of an image that is named only, and that it no longer has."""


class Asked(NamedTuple):
    """A request for one reply.

    Attributes:
        body: makes what is sent, when it is sent.
        again: the same with all images, for a server that no longer has them.
    """

    path: str
    body: Callable[[], dict[str, Any]]
    again: Callable[[], dict[str, Any]] | None = None


class VllmServer:
    """The HTTP side: requests with deadlines, and what became of a server that does not answer them.

    Attributes:
        where: host and port.
        root: the URL that paths are appended to; headers: of every request.
    """

    def __init__(self, settings: ServerSettings, key: str):
        parts = urlsplit(settings.url)
        self.settings = settings
        self.where = f"{parts.hostname}:{parts.port or {'http': 80, 'https': 443}[parts.scheme]}"
        self.root = settings.url.rstrip("/").removesuffix("/v1")
        self.headers = {"Authorization": f"Bearer {key}"}
        self._secret = key if settings.api_key_env else ""

    def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The JSON answer to one request.

        Raises:
            RunAgain: the server is gone, hangs, or failed.
            InputError: it refuses the request.
        """
        limit = self.settings.timeout_s if timeout_s is None else timeout_s
        return self._each([lambda client: self._send(client, method, path, body, limit)], limit)[0]

    def complete(self, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """The answer to each request for a completion, in order, with the one choice that it has. Errors as ``ask``."""

        def job(one: Asked) -> Callable[[Any], Coroutine[Any, Any, dict[str, Any]]]:
            return lambda client: self._completed(client, one)

        answers = self._each([job(one) for one in asked], self.settings.timeout_s)
        for answer in answers:
            given = answer.get("choices")
            if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], dict):
                raise self.gone("sent an answer without the one completion that was asked for")
        return answers

    def has(self, path: str) -> bool:
        """Whether the server answers requests at a path at all."""

        import httpx2

        async def asked(client: Any) -> dict[str, Any]:
            try:
                return {"status": (await client.get(self.root + path, headers=self.headers)).status_code}
            except (httpx2.HTTPError, TimeoutError) as error:
                raise self.gone(f"cannot be reached: {self._without_key(str(error) or type(error).__name__)}") from None

        return bool(self._each([asked], HEALTH_SECONDS)[0]["status"] != NOT_THERE)

    async def _completed(self, client: Any, one: Asked) -> dict[str, Any]:
        try:
            return await self._send(client, "POST", one.path, one.body(), self.settings.timeout_s, ATTEMPTS)
        except InputError as error:
            if one.again is None or FORGOTTEN not in error.why:
                raise
        return await self._send(client, "POST", one.path, one.again(), self.settings.timeout_s, ATTEMPTS)

    def wait(self) -> None:
        """Returns when the server is up. Raises RunAgain if it is not within ``start_timeout_s``."""
        deadline = time.monotonic() + self.settings.start_timeout_s
        while True:
            try:
                self.ask("GET", "/health", timeout_s=HEALTH_SECONDS)
                return
            except RunAgain:
                if time.monotonic() > deadline:
                    raise
            time.sleep(min(2.0, self.settings.start_timeout_s))

    def gone(self, what: str) -> RunAgain:
        """The error of a server that fails, with the last lines of its log."""
        return RunAgain(
            f"the vLLM server at {self.where} {what}",
            self._last_lines(),
            "start it again (safework serve), then run the same command: it resumes from the last checkpoint",
        )

    def _last_lines(self) -> str:
        if not self.settings.log:
            return "its log says more (with engine.server.log=FILE, its last lines are shown here)"
        try:
            lines = last_lines(Path(self.settings.log), LAST_LINES)
        except OSError as error:
            return f"its log {self.settings.log} cannot be read: {error.strerror}"
        return "\n".join([f"the last lines of {self.settings.log}:", *(f"    {self._without_key(line)}" for line in lines)])

    def _each(self, jobs: Sequence[Callable[[Any], Coroutine[Any, Any, dict[str, Any]]]], timeout_s: float) -> list[dict[str, Any]]:
        return list(each_answer(lambda: bounded_client(timeout_s), lambda client: client.aclose(), jobs, self.settings.concurrency))

    async def _send(self, client: Any, method: str, path: str, body: Any, timeout_s: float, attempts: int = 1) -> dict[str, Any]:
        import httpx2

        for attempt in range(1, attempts + 1):
            try:
                response = await client.request(method, self.root + path, json=body, headers=self.headers)
                break
            except httpx2.TimeoutException:
                health = (
                    ""
                    if path == "/health"
                    else (", although it answers /health" if await self._healthy() else ", nor does it answer /health")
                )
                raise self.gone(f"did not answer {path} within {timeout_s:g} s{health}") from None
            except httpx2.TransportError as error:
                if attempt == attempts or not await self._healthy():
                    raise self.gone(f"cannot be reached: {self._without_key(str(error) or type(error).__name__)}") from None
        text = self._without_key(response.text)
        if response.status_code >= 500:
            raise self.gone(f"answered {path} with HTTP {response.status_code}: {_reason(text)}")
        if response.status_code >= 400:
            raise InputError(
                f"the vLLM server at {self.where} refuses {path} (HTTP {response.status_code})",
                _reason(text),
                "start it by safework serve; check engine.server.url and the key in engine.server.api_key_env",
            )
        try:
            answer = json.loads(response.text) if response.text.strip() else {}
        except ValueError:
            raise self.gone(f"answered {path} with what is not JSON") from None
        return answer if isinstance(answer, dict) else {}

    async def _healthy(self) -> bool:
        import httpx2

        client = bounded_client(HEALTH_SECONDS)
        try:
            return bool((await client.get(f"{self.root}/health", headers=self.headers)).status_code == 200)
        except (httpx2.HTTPError, TimeoutError):
            return False
        finally:
            await client.aclose()

    def _without_key(self, text: str) -> str:
        return text.replace(self._secret, "…") if self._secret else text


def _reason(text: str) -> str:
    """The message in the body of an error, one line of it."""
    try:
        body = json.loads(text)
        found = body.get("error", body.get("detail", body))
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        pass
    return visible(" ".join(text.split()))[:300] or "no reason was given"


def checked(server: VllmServer, folder: Path, dtype: str, *, images: bool = False) -> tuple[str, str, int]:
    """(version of vLLM, the served model's name, its positions) of a server that can sample for this trainer.

    Args:
        images: prompts have images.
    """

    def refuse(what: str, why: str, do: str) -> InputError:
        return InputError(f"the vLLM server at {server.where} {what}", why, do)

    start = f"start it by: safework serve MODEL --transfer {server.settings.transfer} --dtype {dtype}"
    version = str(server.ask("GET", "/version", timeout_s=HEALTH_SECONDS).get("version", ""))
    if not any(re.match(re.escape(own) + r"(\D|$)", version) for own in VERSIONS):
        raise refuse(
            f"is vLLM {visible(version)[:40] or 'of an unknown version'}",
            f"its interface for weights is known for {', '.join(VERSIONS)} only",
            f"pip install 'vllm=={VERSIONS[-1]}.*' in the server's environment",
        )
    try:
        info = server.ask("GET", "/server_info?config_format=json")["vllm_config"]
        model, transfer = info["model_config"], (info.get("weight_transfer_config") or {}).get("backend")
    except InputError as error:
        raise refuse("tells nothing of its settings", error.why, f"{start} (it sets VLLM_SERVER_DEV_MODE=1)") from None
    except (KeyError, TypeError, AttributeError):
        raise refuse("describes its settings in an unknown form", f"it is vLLM {version}", start) from None
    wanted = BACKEND if server.settings.transfer == "folder" else "nccl"
    if transfer != wanted:
        raise refuse(f"takes no weights by engine.server.transfer={server.settings.transfer}", f"its backend is {transfer}", start)
    if (mode := model.get("logprobs_mode")) != SAMPLED_LOGPROBS:
        raise refuse(f"returns {mode}", "training needs the log-probabilities of the distribution that was sampled from", start)
    if (served := str(model.get("dtype", "")).removeprefix("torch.")) != dtype:
        raise refuse(f"computes in {served}", f"the trainer computes in {dtype} (bf16)", start)
    own = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if differing := differences(_config_of(model.get("hf_config")), own):
        raise refuse(
            "serves another model", f"it has {differing}, which the model in training has", f"{start} with the model that is trained"
        )
    if images and not server.has(TOKENS):
        raise refuse("takes no images with token ids", f"it has no {TOKENS}", f"{start} (it gives vLLM --enable-scale-out)")
    names = [entry.get("id") for entry in server.ask("GET", "/v1/models", timeout_s=HEALTH_SECONDS).get("data", [])]
    if not names or not isinstance(names[0], str):
        raise refuse("serves no model", "", start)
    return version, names[0], int(model["max_model_len"])


def _config_of(stated: Any) -> dict[str, Any]:
    """A model's configuration as the server states it: a mapping, or its text after the name of its class."""
    if isinstance(stated, str):
        try:
            stated = json.loads(stated[stated.index("{") :])
        except ValueError:
            return {}
    return stated if isinstance(stated, dict) else {}


def differences(served: dict[str, Any], own: dict[str, Any]) -> str:
    """Where two configurations describe weights of another shape, as a sentence's part; empty where they do not."""
    served, own = ({**config, **config.get("text_config", {})} for config in (served, own))
    found = [
        f"{key} {served[key]} in place of {own[key]}" for key in ARCHITECTURE if key in served and key in own and served[key] != own[key]
    ]
    return ", ".join(found)
