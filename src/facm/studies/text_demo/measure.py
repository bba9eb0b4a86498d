"""Samples for captions, measured by the classifier of digits: do they show the digit that was asked for?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.core.cond import Cond, taken
from facm.evaluation.evaluator import Evaluator
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.foundation.prompting import encode_prompts
from facm.pretrained.trained import Trained
from facm.sampling.generate import blocks, sample
from facm.sampling.methods import Method
from facm.studies.text_demo.captions import WORDINGS, WORDS, all_captions

BATCH = 250


@dataclass(frozen=True, eq=False)
class Prompts:
    """All captions, encoded once. Sample i is of digit i mod 10, and its wording changes with every tenth.

    texts: the captions. cond: their embeddings.
    """

    texts: list[str]
    cond: Cond

    @staticmethod
    def of(model: Path, device: torch.device) -> Prompts:
        texts = all_captions()
        return Prompts(texts, encode_prompts(model, texts, device))

    def labels(self, indices: range) -> Tensor:
        return torch.tensor([i % len(WORDS) for i in indices])

    def rows(self, indices: range) -> Tensor:
        """Which captions these samples have."""
        return torch.tensor([(i % len(WORDS)) * len(WORDINGS) + (i // len(WORDS)) % len(WORDINGS) for i in indices])

    def text(self, indices: range) -> list[str]:
        return [self.texts[row] for row in self.rows(indices).tolist()]


@torch.no_grad()
def drawn(
    trained: Trained,
    method: Method,
    prompts: Prompts,
    indices: range,
    device: torch.device,
    seed: int,
    guidance: Guidance = NO_GUIDANCE,
) -> Tensor:
    """Pictures (n, 1, H, W) in [-1, 1] for the prompts of samples ``indices``; equal noise for equal seeds."""
    decoder = trained.decoder(device)
    assert decoder is not None
    x = sample(trained.source(device), method, indices, taken(prompts.cond, prompts.rows(indices)), seed, guidance)
    return decoder(x).mean(1, keepdim=True)


def measured(
    trained: Trained,
    method: Method,
    prompts: Prompts,
    evaluator: Evaluator,
    n: int,
    seed: int,
    guidance: Guidance = NO_GUIDANCE,
) -> dict[str, Any]:
    """Fréchet distance, class accuracy, precision and recall of n samples in the classifier's features."""
    measure = evaluator.measure(n, accuracy=True)
    for indices in blocks(n, BATCH):
        x = drawn(trained, method, prompts, indices, evaluator.device, seed, guidance)
        measure.update(x, prompts.labels(indices))
    result = measure.result()
    names = ("frechet_distance", "accuracy", "precision", "recall")
    return {"steps": method.nfe} | {name: getattr(result, name) for name in names}
