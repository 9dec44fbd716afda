"""A vLLM server that samples for a trainer and takes its weights over.

Replies come over its OpenAI-compatible API, as token ids with the log-probabilities of the distribution that was sampled from; weights go
over its weight-transfer API. Which weights it has is known by a version that only the sending run can have set, and is compared before and
after each rollout. ``safework serve`` starts such a server.
"""

from __future__ import annotations

import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from safework_cli.core.errors import RunAgain, SafeworkError
from safework_cli.core.terminal import visible
from safework_cli.engines.protocol import Completion, Conversation, Sampling
from safework_cli.engines.vllm.images import over_http
from safework_cli.engines.vllm.over_vllm import OverVllm
from safework_cli.engines.vllm.server import COMPLETIONS, HEALTH_SECONDS, TOKENS, Asked, VllmServer, checked
from safework_cli.models.chat_template import encode_prompt
from safework_cli.models.vision import EncodedImages

SHARD_BYTES = 4 * 2**30
"""Of weights in one file."""


class ServedVllm(OverVllm):
    """A ``TokenEngine`` over the weights that were last sent to a server.

    Args:
        folder: of the model that is trained, which the server must have been started with, or with one of the same shape.
        dtype: what the server has to compute in.
        sends: whether this process sends weights: one of a run's processes does.
        processor: of a model whose prompts have images.
        scratch: where weights are put for the server, if the settings name no folder.

    Raises:
        RunAgain: the server does not answer.
        InputError: it is another version of vLLM, serves another model, takes no images where there is a processor, or was started
            otherwise than ``safework serve`` does.
    """

    sampled = True

    def __init__(
        self,
        server: VllmServer,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: str,
        scratch: Path,
        sends: bool = True,
        batch_size: int = 256,
        processor: Any = None,
    ):
        super().__init__(folder, tokenizer, batch_size, processor)
        self._server, self._dtype, self.sends = server, dtype, sends
        self._folder = Path(server.settings.folder) if server.settings.folder else scratch
        self._sent: str | None = None
        server.wait()
        self._vllm, self._model, self._positions = checked(server, folder, dtype, images=processor is not None)
        self._sender: Any = None
        if sends:
            self._begin()

    @property
    def positions(self) -> int | None:
        """See ``OverTokens.positions``."""
        return self._positions

    @property
    def name(self) -> str:
        """See ``Engine.name``."""
        return f"vllm {self._vllm} at {self._server.where}/{self._dtype}"

    # ------------------------------------------------------------ weights

    def load_weights(self, named: Callable[..., Iterable[tuple[str, torch.Tensor]]], version: str) -> None:
        """Sends weights, and makes the server forget what it computed with the old ones.

        Args:
            named: gives (name, weight) of all of them each time that it is called; with ``described=True`` weights that hold no values.
            version: what they are called from here on; the same in all processes of the run, and in no other run.
        """
        if self.sends:
            self._sender(named, version)
            if self._placeholders:
                self._server.ask("POST", "/reset_encoder_cache")
            if self._server.ask("POST", "/reset_prefix_cache").get("success") is False:
                raise SafeworkError(
                    f"the vLLM server at {self._server.where} could not forget what it computed with the old weights",
                    "it is answering other requests: a server samples for one run at a time",
                    "stop what else uses it",
                )
        self._sent = version

    def check_weights(self) -> None:
        """Raises SafeworkError if the server has other weights than those that were sent last."""
        held = self._server.ask("GET", "/weight_info", timeout_s=HEALTH_SECONDS).get("weight_version")
        if held != self._sent:
            raise SafeworkError(
                f"the vLLM server at {self._server.where} has other weights than those of this step "
                f"(version {visible(str(held))[:80]!r} in place of {self._sent!r})",
                "it was restarted, or another run sent it weights; what it sampled does not count",
                "run the same command again: it resumes from the last checkpoint; give each run a server of its own",
            )

    def _begin(self) -> None:
        if self._server.settings.transfer == "folder":
            self._server.ask("POST", "/init_weight_transfer_engine", {"init_info": {}})
            self._sender = self._send_by_folder
            return
        from trl.generation.vllm_client import VLLMClient

        client: Any = VLLMClient(base_url=self._server.root, group_port=self._server.settings.group_port)
        client.session.headers.update(self._server.headers)
        client.session.request = partial(client.session.request, timeout=self._server.settings.timeout_s)
        client.init_communicator(torch.device("cuda", torch.cuda.current_device()))

        def send(named: Callable[..., Iterable[tuple[str, torch.Tensor]]], version: str) -> None:
            described = [(name, str(weight.dtype).removeprefix("torch."), list(weight.shape)) for name, weight in named(described=True)]
            client.update_named_params(described, iter(named()))
            self._server.ask("POST", "/update_weight_version", {"new_version": version})

        self._sender = send

    def _send_by_folder(self, named: Callable[..., Iterable[tuple[str, torch.Tensor]]], version: str) -> None:
        place = self._folder / f"weights-{secrets.token_hex(8)}"
        place.mkdir(parents=True)
        try:
            count = write_weights(named(), place, getattr(torch, self._dtype))
            try:
                self._server.ask("POST", "/start_weight_update", {})
            except RunAgain:  # a run that was killed within an update leaves it open
                self._server.ask("POST", "/finish_weight_update", {})
                self._server.ask("POST", "/start_weight_update", {})
            self._server.ask("POST", "/update_weights", {"update_info": {"folder": str(place.resolve()), "weights": count}})
            self._server.ask("POST", "/finish_weight_update", {"weight_version": version})
        finally:
            shutil.rmtree(place, ignore_errors=True)

    # ------------------------------------------------------------ replies

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        n: int = 1,
        visions: Sequence[Any] | None = None,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """See ``TokenEngine.generate_ids``. The server's weights are checked before and after; an image is sent once for all replies to it.

        Raises:
            InputError: the server refuses an image, or computed on other tokens than those of a prompt.
        """
        jobs = self._jobs(prompts, sampling, n, seeds)
        own: Sequence[EncodedImages | None] = visions or [None] * len(prompts)
        self.check_weights()
        sent = self._send_images(prompts, [(place, vision) for place, _ in jobs if (vision := own[place])])
        asked = []
        for place, seed in jobs:
            options, vision = self._options(sampling, seed), own[place]
            if vision:
                asked.append(self._with_images(prompts[place], vision, options, sent=id(vision) in sent))
            else:
                body = options | {"model": self._model, "prompt": list(prompts[place]), "return_token_ids": True}
                asked.append(Asked(COMPLETIONS, partial(dict, body)))
        answers = self._server.complete(asked)
        self.check_weights()
        results: list[list[Completion]] = [[] for _ in prompts]
        for (place, _), answer in zip(jobs, answers, strict=True):
            choice, prompt = answer["choices"][0], list(prompts[place])
            ids, given = choice.get("token_ids"), choice.get("logprobs") or {}
            logprobs = [entry["logprob"] for entry in given.get("content") or []] if own[place] else given.get("token_logprobs")
            if not isinstance(ids, list) or not isinstance(logprobs, list) or not all(isinstance(x, (int, float)) for x in ids + logprobs):
                raise self._server.gone("sent a completion without its token ids and log-probabilities")
            if own[place]:
                self._check_tokens(prompt, answer.get("prompt_token_ids") or [])
            results[place].append(self._completion(prompt, ids, logprobs, choice.get("finish_reason")))
        return results

    def _send_images(self, prompts: Sequence[list[int]], of_jobs: Sequence[tuple[int, EncodedImages]]) -> set[int]:
        """Sends the images that several replies share, by one request for a token; returns the ``id`` of each such ``vision``.

        Args:
            of_jobs: (position of the prompt, its images) of each reply to a prompt with images.
        """
        counts = Counter(id(vision) for _, vision in of_jobs)
        shared = {id(vision): (place, vision) for place, vision in of_jobs if counts[id(vision)] > 1}
        one_token = self._options(Sampling(1), 0)
        self._server.complete([self._with_images(prompts[place], vision, one_token, sent=False) for place, vision in shared.values()])
        return set(shared)

    def _with_images(self, prompt: list[int], vision: EncodedImages, options: dict[str, Any], *, sent: bool) -> Asked:
        """A request for one reply to a prompt with images, made when its turn comes: an image that was sent before is only named, and sent
        again where the server no longer has it."""

        def body(sent: bool) -> dict[str, Any]:
            return {
                "model": self._model,
                "token_ids": vision.short_of(prompt),
                "content_parts": over_http(vision, sent=sent),
                "sampling_params": options,
                "return_token_ids": True,
            }

        return Asked(TOKENS, partial(body, sent), partial(body, False) if sent else None)

    def score(self, conversations: Sequence[Conversation], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``TokenEngine.score``."""
        prompts = [encode_prompt(self.tokenizer, conversation).ids for conversation in conversations]
        self.check_weights()
        one_token = {"model": self._model, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        bodies = [one_token | {"prompt": prompt + list(ids)} for prompt, ids in zip(prompts, completions, strict=True)]
        choices = [answer["choices"][0] for answer in self._server.complete([Asked(COMPLETIONS, partial(dict, body)) for body in bodies])]
        return [
            [float(entry[str(token)]["logprob"]) for entry, token in zip(choice["prompt_logprobs"][len(prompt) :], ids, strict=True)]
            for choice, prompt, ids in zip(choices, prompts, completions, strict=True)
        ]


def write_weights(named: Iterable[tuple[str, torch.Tensor]], folder: Path, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES) -> int:
    """Writes weights into safetensors files of about that size; returns how many there are."""
    shard: dict[str, torch.Tensor] = {}
    count = number = size = 0

    def write() -> None:
        nonlocal number, size
        number += 1
        save_file(shard, folder / f"weights-{number:05}.safetensors")
        shard.clear()
        size = 0

    for name, weight in named:
        shard[name] = weight.detach().to("cpu", dtype if weight.is_floating_point() else weight.dtype).contiguous()
        count, size = count + 1, size + shard[name].nbytes
        if size >= shard_bytes:
            write()
    if shard:
        write()
    return count
