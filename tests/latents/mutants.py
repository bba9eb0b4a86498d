"""Mutants of latents and of their statistics."""

from tests.mutants import Mutant

STATISTICS = "tests/latents/test_statistics.py"
PREPARE = "tests/latents/prepare/test_prepare.py"
MUTANTS = (
    Mutant(
        "latents/statistics.py",
        "self._like(self.std, z) * self.multiplier",
        "self._like(self.std, z)",
        (f"{STATISTICS}::test_there_by_hand_and_back",),
    ),
    Mutant(
        "latents/prepare/encode.py",
        "derive(seed, i, flip)",
        "derive(seed, i)",
        (f"{PREPARE}::test_noise_is_of_the_seed_the_image_and_the_side_and_not_of_the_batch",),
    ),
    Mutant(
        "latents/prepare/moments.py",
        "self.squares / self.count - self.mean**2",
        "self.squares / self.count",
        (f"{PREPARE}::test_statistics_are_of_all_latents_plain_and_mirrored",),
    ),
)
