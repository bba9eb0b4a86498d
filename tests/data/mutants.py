"""Mutants of data: whose turn it is, and which samples of a bucket come."""

from tests.mutants import Mutant

BUCKETS = "tests/data/test_buckets.py"
EQUALLY = (f"{BUCKETS}::test_each_batch_is_of_one_bucket_and_each_sample_comes_equally_often",)
TURNS = (f"{BUCKETS}::test_turns_are_in_proportion",)
FRAMES = "tests/data/test_frames.py"
SPACED = f"{FRAMES}::test_frames_are_evenly_spaced_with_the_first_and_the_last"
ORDER = f"{FRAMES}::test_frames_of_a_clip_follow_each_other"

MUTANTS = (
    Mutant(
        "data/turns.py", "Fraction(2 * done[k] + 1, 2 * sizes[k])", "Fraction(2 * done[k] + 1, 2 * sizes[0])", TURNS
    ),
    Mutant("data/turns.py", "range(batch - sum(done))", "range(batch - sum(done) + 1)", TURNS),
    Mutant("data/stream.py", "number * self.batch_size, (k,)", "batch * self.batch_size, (k,)", EQUALLY),
    Mutant(
        "data/stream.py",
        "start + here, size, bucket",
        "start, size, bucket",
        (f"{BUCKETS}::test_ranks_share_a_batch_and_any_position_can_be_read",),
    ),
    Mutant(
        "data/stream.py",
        "(part * self.ranks + self.rank) * size",
        "(self.rank * self.parts + part) * size",
        ("tests/data/test_stream.py::test_what_all_ranks_work_on_at_the_same_time_is_contiguous",),
    ),
    Mutant(
        "data/stream.py",
        "return buckets[k][places], mirrored",
        "return places, mirrored",
        EQUALLY,
    ),
    Mutant("data/frames.py", "np.linspace(0, frames - 1, most)", "np.linspace(0, frames, most)", (SPACED,)),
    Mutant(
        "data/frames.py",
        "chosen.transpose(1, 2).flatten(0, 1)",
        "chosen.transpose(1, 2).transpose(0, 1).flatten(0, 1)",
        (ORDER,),
    ),
    Mutant(
        "data/frames.py",
        "np.asarray(indices) // len(chosen)",
        "np.asarray(indices) % len(self.clips)",
        (f"{FRAMES}::test_a_data_set_of_clips_as_one_of_images",),
    ),
)
