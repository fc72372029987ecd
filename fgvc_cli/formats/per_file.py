"""One answer per file of a run with frames: the mean of what its frames got."""

from __future__ import annotations

import re
from collections import defaultdict

from fgvc_cli.formats.csv_rows import csv_lines, ranked_columns
from fgvc_cli.formats.rows import OK, UNSURE, Block, RunInfo
from fgvc_cli.formats.sinks import FileSink


class PerFileSink(FileSink):
    """CSV: ``path,status,error,frames,answered,label,prob,label_2,...``, a row per file in their order.

    A probability is the mean over the frames that were answered. A class counts as 0 in a frame that does not
    have it among its top k: the means are exact with ``top_k`` = all classes, and else at most as large.
    ``min_prob`` of the run marks unsure ones. Where no frame was answered, ``status`` and ``error`` are those
    of the first.
    """

    def _begin(self, info: RunInfo) -> None:
        self._info = info
        self._min_prob = info.settings.get("min_prob")
        self._has_frames = "frames" in info.settings
        self._name: str | None = None
        csv_lines(
            self._stream, [["path", "status", "error", "frames", "answered", *ranked_columns(info.top_k)]]
        )

    def _start(self, name: str, status: str, error: str) -> None:
        self._name, self._failure = name, (status, error)
        self._frames = self._answered = 0
        self._sums: defaultdict[int, float] = defaultdict(float)

    def _write(self, block: Block) -> None:
        for row, path in enumerate(block.path):
            name = re.sub(r"#\d+$", "", path) if self._has_frames else path
            # Without frames, a name that occurs twice is two files.
            if name != self._name or not self._has_frames:
                self._finish()
                self._start(name, block.status[row], block.error[row])
            self._frames += 1
            if block.topk_index[row, 0] < 0:
                continue
            self._answered += 1
            for index, prob in zip(
                block.topk_index[row].tolist(), block.topk_prob[row].tolist(), strict=True
            ):
                self._sums[index] += prob

    def _finish(self) -> None:
        if self._name is None:
            return
        info = self._info
        means = [(total / self._answered, index) for index, total in self._sums.items()]
        best = sorted(means, key=lambda each: (-each[0], each[1]))[: info.top_k]
        status, error = self._failure
        if best:
            status, error = (UNSURE if self._min_prob and best[0][0] < self._min_prob else OK), ""
        ranked = [cell for mean, index in best for cell in (info.classes[index], f"{mean:.6f}")]
        counts = [str(self._frames), str(self._answered)]
        csv_lines(self._stream, [[self._name, status, error, *counts, *(ranked or [""] * (2 * info.top_k))]])

    def _close(self, *, complete: bool) -> None:
        if complete and hasattr(self, "_name"):
            self._finish()
