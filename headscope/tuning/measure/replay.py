"""Replay: recorded images run, teacher forced, through the compressed cache; what is lost against the full cache.

The distribution compared is the one that is sampled from: under guidance `u + s * (c - u)` of the two streams, after the
temperature and before top-k, at the recorded scale and interval. Forward KL(full || policy) in nats. The first image token
follows from the prefix alone, which every policy reads in full, so it does not count: an image of N tokens gives N - 1
positions, and position i of every array here belongs to image token i + 1.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from headscope.errors import DataError
from headscope.geometry import Geometry
from headscope.models import ImageModel, expect_model, logits_of
from headscope.policy import Policy
from headscope.runtime import CompressedCache, cache_for, compressed, no_numbers, replayed_rows, scales
from headscope.samples import Samples
from headscope.tuning.measure.full_cache import ROOM, FullCachePredictions
from headscope.tuning.measure.measurement import ReplayResult, Watch
from headscope.tuning.measure.room import batch_bytes, replayed_bytes
from headscope.tuning.measure.usual import UsualAttention


@dataclass(frozen=True)
class Batch:
    """Some of the images, ready to run: rows are the conditional streams, then (under guidance) the unconditional ones.

    Attributes:
        prefix: [rows, P, C], embeddings of the prompt.
        tokens: [rows, N - 1, C], embeddings of image tokens 0 .. N - 2.
        mask: int64 [rows, P + N - 1], zero at the padding on the left.
        images: which images of the replay these are.
    """

    prefix: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor
    images: slice


class Replay:
    """The recorded images of `samples` under the full cache, against which policies are measured.

    Args:
        model: whose tokens were recorded.
        samples: the recorded tokens with prompts, guidance scale and temperature.
        batch_size: images that run together; by default as many as fit into `batch_bytes`.
        dtype: of the cache (the model's by default).
        by_stream: also report each stream's own KL (three reference tables in memory in place of one).
        reference_bytes: what the tables of the full cache's predictions may take; see `FullCachePredictions`.
        usual: what tokens usually receive: heads whose kind of score needs a table are measured with one of it.

    Raises:
        DataError: no image, tokens of another grid or outside the vocabulary, temperature 0, another model's weights.
        NumberError: the full cache gives NaN or infinite logits; names the token.
    """

    def __init__(
        self,
        model: ImageModel,
        samples: Samples,
        *,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        by_stream: bool = True,
        reference_bytes: int = ROOM,
        usual: UsualAttention | None = None,
    ) -> None:
        expect_model(model, "Replay")
        _check(model, samples)
        self.model = model
        self.samples, self.usual = samples, usual
        self.geometry = model.shape.geometry
        self.dtype = dtype or model.dtype
        self.guidance, self.temperature = float(samples.guidance), float(samples.temperature)
        self.streams = 1 if self.guidance == 1.0 else 2
        self.by_stream = by_stream and self.streams == 2
        self.tokens = torch.as_tensor(samples.tokens).long().to(model.device)
        with torch.inference_mode():
            self._encode()
            after = torch.arange(1, self.geometry.tokens, device=model.device)[:, None]  # what each position is followed by
            self.scale = scales(self.guidance, samples.cfg_interval, after)
            self.batch_size = min(batch_size or self.fitting_batch(), len(self.tokens))
            self.batches = [self._batch(start) for start in range(0, len(self.tokens), self.batch_size)]
            self._remember_reference(reference_bytes)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.tokens)

    def measure(self, policy: Policy, watch: Watch | None = None) -> ReplayResult:
        """Run the recorded tokens through the compressed cache under `policy`.

        Args:
            policy: what each head keeps.
            watch: told the losses of a batch of images once it is done; what it raises ends the measurement.

        Raises:
            PolicyMismatch: the policy is for another model, or lacks a table that nothing here gives.
            NumberError: NaN or infinite logits; names the token.
        """
        started = time.perf_counter()
        parts, nbytes, policy = [], 0, self.completed(policy)
        with torch.inference_mode(), compressed(self.model, policy):
            for batch in self.batches:
                cache = cache_for(
                    policy, batch=len(batch.prefix), prefix=self.prefix, dtype=self.dtype, device=self.model.device
                )
                hidden = self.run(batch, policy, cache)
                nbytes = nbytes or cache.nbytes() * self.streams // len(batch.prefix)
                parts.append(self.compare(hidden, batch.images))
                divergence = parts[-1][0]
                self._check_numbers(divergence, cache)
                if watch is not None and divergence is not None:
                    watch(divergence.double().mean(1))
        return ReplayResult.of(parts, self.geometry, cache_bytes=nbytes, seconds=time.perf_counter() - started)

    def completed(self, policy: Policy) -> Policy:
        """The policy, with the tables that its scores need where it has none and what tokens usually receive is known."""
        return policy if self.usual is None or policy.tables is not None else self.usual.complete(policy)

    @torch.inference_mode()
    def measure_full(self, other: ImageModel) -> ReplayResult:
        """What a copy of the model in another dtype, of the same weights, loses with everything kept: the noise of rounding."""
        started, twin = time.perf_counter(), Replay(other, self.samples, batch_size=self.batch_size, by_stream=False)
        parts = [self.compare(twin.full(batch), batch.images, other) for batch in twin.batches]
        return ReplayResult.of(parts, self.geometry, cache_bytes=0, seconds=time.perf_counter() - started)

    def run(self, batch: Batch, policy: Policy, cache: CompressedCache) -> torch.Tensor:
        """Hidden states [rows, N - 1, C] after image tokens 0 .. N - 2, computed chunk by chunk through `cache`.

        Chunks never cross a stride end, where heavy heads choose; without heavy heads the image is one chunk. Rows at once are
        fed a step at a time, each state then being the one that the token after its position is drawn from.

        Args:
            batch: the images.
            policy: by which `chunks` cuts them.
            cache: an empty one of that policy, for as many rows.
        """
        self.feed_prefix(batch, cache)
        if policy.rows_at_once:
            return replayed_rows(self.model, cache, batch.mask[:, : self.prefix], batch.tokens)
        hidden = []
        for start, end in chunks(policy, self.geometry):
            mask = batch.mask[:, : self.prefix + end]
            hidden.append(self.model.forward(batch.tokens[:, start:end], mask, cache))
        return torch.cat(hidden, 1)

    def feed_prefix(self, batch: Batch, cache: CompressedCache) -> None:
        """Take the prompts in, where there are any.

        Args:
            batch: the images.
            cache: an empty one, for as many rows.
        """
        if self.prefix:
            self.model.forward(batch.prefix, batch.mask[:, : self.prefix], cache)

    def compare(self, hidden: torch.Tensor, images: slice, model: ImageModel | None = None) -> tuple[torch.Tensor | None, ...]:
        """(divergence, bound, agreement, surplus, conditional, unconditional), see `ReplayResult`: [images, N - 1] or None.

        Args:
            hidden: hidden states [rows, N - 1, C].
            images: which images of the replay they belong to.
            model: whose hidden states they are, by default the replay's.
        """
        logits = self._streams(hidden, model)
        measured = torch.log_softmax(self._guided(*logits), -1)
        recorded = self.tokens[images, 1:, None]
        surplus = (self._recorded[images] - measured.gather(-1, recorded).squeeze(-1)).cpu()
        agreement = (measured.argmax(-1) == self._top[images]).cpu()
        own = [
            table.divergence(torch.log_softmax(stream, -1), images)[0].cpu()
            for table, stream in zip(self.references[1:], logits, strict=False)
            if stream is not None
        ]
        divergence, bound = self.references[0].divergence(measured, images)
        return divergence.cpu(), bound.cpu(), agreement, surplus, *(own or (None, None))

    def divergence(self, hidden: torch.Tensor, images: slice) -> torch.Tensor:
        """Only the guided KL in nats, float32 [images, N - 1]: what the sensitivity table needs.

        Args:
            hidden: hidden states [rows, N - 1, C].
            images: which images of the replay they belong to.
        """
        measured = torch.log_softmax(self._guided(*self._streams(hidden)), -1)
        found = self.references[0].divergence(measured, images)[0].cpu()
        self._check_numbers(found)
        return found

    def _check_numbers(self, values: torch.Tensor | None, cache: CompressedCache | None = None) -> None:
        """Refuse numbers [images, N - 1] that are none: the logits at their place were."""
        if values is not None and bool((wrong := ~values.isfinite()).any()):
            token = int(wrong.any(0).nonzero()[0]) + 1
            raise no_numbers(self.model, token, () if cache is None else (layer.kept() for layer in cache.compressed_layers))

    def full(self, batch: Batch) -> torch.Tensor:
        """Hidden states [rows, N - 1, C] under the full cache: one parallel call (attention is causal).

        Args:
            batch: the images, one of `batches`.
        """
        hidden = self.model.forward(torch.cat([batch.prefix, batch.tokens], 1), batch.mask, None)
        return hidden[:, self.prefix :]

    def _encode(self) -> None:
        prefix = self.model.tokenize(list(self.samples.prompts))
        ids, mask = (part.to(self.model.device) for part in prefix.stacked(self.streams == 2))
        self.prefix, each = int(ids.shape[1]), (self.streams, len(self.tokens))
        self._prefix = self.model.embed_prefix(ids).unflatten(0, each)  # [streams, n, P, C]
        self._mask = mask.unflatten(0, each)  # [streams, n, P]

    def fitting_batch(self) -> int:
        """Images whose logits, states and attention masks fit into `batch_bytes`."""
        return max(1, batch_bytes(self.model.device) // replayed_bytes(self.model, self.prefix, self.streams))

    def _batch(self, start: int) -> Batch:
        images = slice(start, min(start + self.batch_size, len(self.tokens)))
        embedded = self.model.embed_tokens(self.tokens[images, :-1])
        ones = self._mask.new_ones(self.streams * len(embedded), embedded.shape[1])
        return Batch(
            prefix=self._prefix[:, images].flatten(0, 1),
            tokens=embedded.repeat(self.streams, 1, 1),
            mask=torch.cat([self._mask[:, images].flatten(0, 1), ones], 1),
            images=images,
        )

    def _remember_reference(self, room: int) -> None:
        size = (len(self.tokens), self.tokens.shape[1] - 1, self.model.vocabulary)
        count = 3 if self.by_stream else 1
        self.references = [FullCachePredictions(*size, room // count) for _ in range(count)]
        top, recorded = [], []
        for batch in self.batches:
            logits = self._streams(self.full(batch))
            guided = torch.log_softmax(self._guided(*logits), -1)
            self.references[0].add(guided)
            for table, stream in zip(self.references[1:], logits, strict=False):
                if stream is not None:
                    table.add(torch.log_softmax(stream, -1))
            top.append(guided.argmax(-1))
            recorded.append(guided.gather(-1, self.tokens[batch.images, 1:, None]).squeeze(-1))
            self._check_numbers(recorded[-1])
        self._top, self._recorded = torch.cat(top), torch.cat(recorded)

    def _streams(self, hidden: torch.Tensor, model: ImageModel | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of each stream after the temperature, float32 [images, N - 1, V]."""
        logits = logits_of(model or self.model, hidden, 1).float() / self.temperature
        if self.streams == 1:
            return logits, None
        conditional, unconditional = logits.chunk(2)
        return conditional, unconditional

    def _guided(self, conditional: torch.Tensor, unconditional: torch.Tensor | None) -> torch.Tensor:
        if unconditional is None:
            return conditional
        return torch.lerp(unconditional, conditional, self.scale)


def chunks(policy: Policy, geometry: Geometry) -> Iterator[tuple[int, int]]:
    """(start, end) of the chunks in which image tokens 0 .. N - 2 are replayed.

    Example: 4 x 4 cells, stride 8, heavy heads: a row at a time, (0, 4) (4, 8) (8, 12) (12, 15).
    """
    last = geometry.tokens - 1
    step = min(policy.stride, geometry.row_length) if bool((policy.heavy > 0).any()) else last
    for start in range(0, last, step):
        yield start, min(start + step, last)


def _check(model: ImageModel, samples: Samples) -> None:
    tokens = torch.as_tensor(samples.tokens)
    if len(tokens) == 0:
        raise DataError("No recorded image to replay: the samples are empty; trace at least one prompt first.")
    if tokens.shape[1] != model.shape.geometry.tokens:
        raise DataError(
            f"The recorded images have {tokens.shape[1]} image tokens, {model.name} generates "
            f"{model.shape.geometry.tokens}: they were recorded with another model; trace this one again."
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= model.vocabulary:
        raise DataError(
            f"A recorded token is outside 0..{model.vocabulary - 1}, the image codes of {model.name}: the samples are "
            "damaged or of another model; trace this one again."
        )
    if not float(samples.temperature) > 0:
        raise DataError(
            f"The recorded images are of temperature {samples.temperature:g}, which leaves no distribution to compare: "
            "generate them at a temperature above 0."
        )
    if samples.weights and samples.weights != model.shape.weights:
        raise DataError(
            f"The recorded images are of other weights ({samples.weights[:12]}) than {model.name} has "
            f"({model.shape.weights[:12]}): trace this model again."
        )
