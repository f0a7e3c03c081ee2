"""The running batch: rows of a key/value cache that a transformers model fills and advances together.

Rows are aligned at their right ends, as transformers pads for generation: each step writes one column for all rows, and
attention sees the last `width` columns, `width` being the longest row.

              start          end
    columns  ──┬──────────────┬────────── (room to grow)
    row 0      │ t t t t t t t│
    row 1      │ . . . t t t t│           . is masked
    row 2      │ . . . . . t t│

What transformers' own cache does per token and layer, copying all of it to append a column, happens here only when the
room is used up. Dropping a row moves the last one into its place: one row is copied, whatever the batch's size.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from modelkit.engines._sampling import RowSampler, sample
from modelkit.engines._scheduler import Row

__all__ = ["TorchBatch"]

# Columns are allocated in steps of this many tokens.
COLUMN_STEP = 64
# How a CPU's allocator, CUDA and its libraries say it where they raise no OutOfMemoryError.
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


class _Forward:
    """What the forward in progress touches: `rows`, `num_new` columns for each, after `num_past` columns."""

    def __init__(self) -> None:
        self.rows = slice(0, 0)
        self.num_new = 0
        self.num_past = 0
        self.num_running = 0  # rows that must survive
        self.running_width = 0  # and how long the longest of them is


class _Layer(DynamicLayer):  # type: ignore[misc, no-untyped-call, unused-ignore] # partly typed
    """One layer's keys and values, both [rows, heads, columns, head size], with room to grow on the right.

    It lays out its own memory, so that running out of it half-way through a forward leaves every layer usable: `end`
    moves only in `commit`, after the forward has succeeded.
    """

    def __init__(self, forward: _Forward) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.forward = forward
        self.end = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new columns and return all that attention may see, [rows, heads, past + new, head size]."""
        step = self.forward
        self._make_room(key_states, value_states)
        keys, values = self._buffers()
        end = self.end + step.num_new if step.num_past else self.end
        new = slice(end - step.num_new, end)
        seen = slice(new.start - step.num_past, end)
        keys[step.rows, :, new] = key_states
        values[step.rows, :, new] = value_states
        return keys[step.rows, :, seen], values[step.rows, :, seen]

    def get_seq_length(self) -> int:
        """Return how many columns came before the new ones."""
        return self.forward.num_past

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns attention sees and the number of those left out before them."""
        return self.forward.num_past + query_length, 0

    def free(self) -> None:
        """Give the memory back; the layer can be used again."""
        self.keys = self.values = None
        self.is_initialized = False
        self.end = 0

    def commit(self) -> None:
        """Keep the columns that a decode wrote."""
        if self.is_initialized:
            self.end += self.forward.num_new

    def move_row(self, source: int, target: int) -> None:
        """Put one row in the place of another."""
        if self.is_initialized:
            for buffer in self._buffers():
                buffer[target] = buffer[source]

    def _make_room(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        step = self.forward
        num_rows, num_columns = (0, 0) if self.keys is None else (self.keys.shape[0], self.keys.shape[2])
        if step.num_past:  # a decode: one more column, for all rows or for one of them
            if self.end + step.num_new > num_columns:
                self._lay_out(keys, values, end=step.running_width, rows=step.num_running)
            return
        if step.num_running == 0 and step.num_new <= num_columns:
            self.end = step.num_new
        if step.num_new > self.end or step.rows.stop > num_rows:
            self._lay_out(keys, values, end=max(step.running_width, step.num_new), rows=step.rows.stop)
        # An earlier row's values lie left of a new one. A mask hides numbers, but not a NaN.
        for buffer in self._buffers():
            buffer[step.rows, :, : self.end - step.num_new] = 0

    def _buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _lay_out(self, keys: torch.Tensor, values: torch.Tensor, *, end: int, rows: int) -> None:
        """Move the running rows into new memory, so that they end at column `end`, with room for half as much again."""
        columns = end + max(COLUMN_STEP, end // 2)
        columns += -columns % COLUMN_STEP
        capacity = 1 << (rows - 1).bit_length()
        moved_keys = self._moved(self.keys, keys, (capacity, keys.shape[1], columns, keys.shape[3]), end)
        moved_values = self._moved(
            self.values, values, (capacity, values.shape[1], columns, values.shape[3]), end
        )
        self.keys, self.values = moved_keys, moved_values
        self.end = end
        self.is_initialized = True

    def _moved(
        self, old: torch.Tensor | None, like: torch.Tensor, shape: tuple[int, ...], end: int
    ) -> torch.Tensor:
        new = like.new_zeros(shape)
        num, width = self.forward.num_running, self.forward.running_width
        if old is not None and num:
            new[:num, :, end - width : end] = old[:num, :, self.end - width : self.end]
        return new


class TorchBatch:
    """A `_scheduler.Batch` over a transformers causal language model. Every call must come from the same thread."""

    def __init__(self, model: Any, *, eos_ids: frozenset[int]) -> None:
        self._model = model
        # Its name since transformers 5.24, and before.
        takes_cache = "cache" in inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if takes_cache else "past_key_values"
        self._device: torch.device = model.device
        self._eos_ids = sorted(eos_ids)
        self._forward = _Forward()
        num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self._layers = [_Layer(self._forward) for _ in range(num_layers)]
        self._cache = Cache(layers=list(self._layers))
        self._rows: list[Row] = []
        self._samplers: list[RowSampler] = []

    @property
    def rows(self) -> Sequence[Row]:
        """The running rows."""
        return self._rows

    @torch.inference_mode()
    def prefill(self, rows: Sequence[Row]) -> list[int | Exception]:
        """Append new rows; return the first output token of each, or its fault. Adds none where it raises."""
        samplers = [RowSampler(row, self._eos_ids, self._device) for row in rows]
        lengths = [row.num_tokens for row in rows]
        width = max(lengths)
        padded = [[0] * (width - row.num_tokens) + list(row.prompt_ids) for row in rows]
        first = len(self._rows)
        tokens = self._run(slice(first, first + len(rows)), padded, lengths, num_past=0, samplers=samplers)
        self._rows.extend(rows)
        self._samplers.extend(samplers)
        return tokens

    @torch.inference_mode()
    def decode(self, *, one_by_one: bool = False) -> list[int | Exception]:
        """Return the next token of each row, or its fault. May be called again where it raised."""
        rows = slice(0, len(self._rows))
        tokens = self._decode_each() if one_by_one else self._decode(rows)
        for layer in self._layers:
            layer.commit()
        return tokens

    def _decode_each(self) -> list[int | Exception]:
        """Write the new column of one row after the other; `commit` then makes it everybody's."""
        tokens: list[int | Exception] = []
        for index in range(len(self._rows)):
            try:
                tokens += self._decode(slice(index, index + 1))
            except Exception as error:  # noqa: BLE001 - the row's own, whatever it is
                tokens.append(error)
        return tokens

    def _decode(self, rows: slice) -> list[int | Exception]:
        running = self._rows[rows]
        last = [[row.output_ids[-1]] for row in running]
        lengths = [row.num_tokens for row in running]
        return self._run(rows, last, lengths, num_past=max(lengths) - 1, samplers=self._samplers[rows])

    @torch.inference_mode()
    def drop(self, rows: Sequence[Row]) -> None:
        """End the rows of these rows; the last row moves into each gap."""
        ended = set(rows)
        for index in reversed(range(len(self._rows))):
            if self._rows[index] not in ended:
                continue
            last = len(self._rows) - 1
            if index != last:
                for layer in self._layers:
                    layer.move_row(last, index)
                self._rows[index], self._samplers[index] = self._rows[last], self._samplers[last]
            del self._rows[last], self._samplers[last]
        if not self._rows:
            self._free()

    def close(self) -> None:
        """Free the cache and the model."""
        self._rows.clear()
        self._samplers.clear()
        self._free()
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def is_out_of_memory(self, error: Exception) -> bool:
        """Say whether `error` means that there was not enough memory; some libraries say so only in its text."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)

    def is_lost(self) -> bool:
        """Say whether the device answers no more: after some errors CUDA refuses everything until the process ends."""
        if self._device.type == "cpu":
            return False
        try:
            torch.zeros(1, device=self._device).item()
        except Exception as error:  # noqa: BLE001 - whatever its kind
            return not self.is_out_of_memory(error)
        return False

    def _free(self) -> None:
        for layer in self._layers:
            layer.free()

    def _run(
        self,
        rows: slice,
        ids: list[list[int]],
        lengths: list[int],
        *,
        num_past: int,
        samplers: list[RowSampler],
    ) -> list[int | Exception]:
        """Run the model on `ids` [rows, new] and choose a token for each row; `lengths` include the new tokens."""
        step = self._forward
        step.rows, step.num_new, step.num_past = rows, len(ids[0]), num_past
        step.num_running = len(self._rows)
        # Their newest token is not in the cache yet: its key and value are computed with the next one.
        step.running_width = max((row.num_tokens - 1 for row in self._rows), default=0)
        device = self._device
        width = num_past + step.num_new
        padding = (width - torch.tensor(lengths, device=device)).unsqueeze(1)
        columns = torch.arange(width, device=device)
        positions = (columns[num_past:] - padding).clamp_(min=0)
        output = self._model(
            input_ids=torch.tensor(ids, device=device),
            # Without padding no mask is needed, and attention has a faster way.
            attention_mask=None if min(lengths) == width else columns >= padding,
            position_ids=positions,
            **{self._cache_argument: self._cache},
            use_cache=True,
            logits_to_keep=1,
        )
        return sample(output.logits[:, -1], samplers)
