"""Mutants of data: whose turn it is, and which samples of a bucket come."""

from tests.mutants import Mutant

BUCKETS = "tests/data/test_buckets.py"
EQUALLY = (f"{BUCKETS}::test_each_batch_is_of_one_bucket_and_each_sample_comes_equally_often",)
TURNS = (f"{BUCKETS}::test_turns_are_in_proportion",)
MUTANTS = (
    Mutant(
        "data/turns.py", "Fraction(2 * done[k] + 1, 2 * sizes[k])", "Fraction(2 * done[k] + 1, 2 * sizes[0])", TURNS
    ),
    Mutant("data/turns.py", "range(batch - sum(done))", "range(batch - sum(done) + 1)", TURNS),
    Mutant("data/stream.py", "start = number * self.batch_size", "start = batch * self.batch_size", EQUALLY),
    Mutant(
        "data/stream.py",
        "self.batch_size + self.rank * local\n        places",
        "self.batch_size\n        places",
        (f"{BUCKETS}::test_ranks_share_a_batch_and_any_position_can_be_read",),
    ),
    Mutant(
        "data/stream.py",
        "return buckets[k][places], mirrored",
        "return places, mirrored",
        EQUALLY,
    ),
)
