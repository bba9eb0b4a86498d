"""Mutants of what the ranks share."""

from tests.mutants import Mutant

TRAINING = "tests/distributed/test_training.py"
TWO = (f"{TRAINING}::test_two_processes_are_one_over_50_steps",)
MISUSE = ("tests/distributed/test_failures.py::test_misuse_is_named_on_every_rank",)

MUTANTS = (
    Mutant(
        "distributed/gradients.py",
        "return contextlib.nullcontext() if last else wrapped.no_sync()",
        "return wrapped.no_sync()",
        TWO,
    ),
    Mutant("distributed/gradients.py", "if not _close(reference[1], other[1]):", "if False:", MISUSE),
    Mutant("training/trainer.py", "stream.rank * len(batch.x_1)", "0", TWO),
    Mutant(
        "training/trainer.py",
        "shared = self.objective.draws_for_whole_step or batch.of is None",
        "shared = True",
        (f"{TRAINING}::test_an_objective_that_draws_for_its_batch_gets_other_draws_in_each_part",),
    ),
    Mutant(
        "training/state.py",
        "value[world.rank] if len(value) == world.ranks else value.mean()",
        "value.mean()",
        (f"{TRAINING}::test_a_resumed_run_of_two_is_the_uninterrupted_one_bit_for_bit",),
    ),
    Mutant(
        "distributed/forward_ad_hooks.py",
        "x if tangent is None else fwd.make_dual(x, tangent.to(x.dtype))",
        "x",
        (f"{TRAINING}::test_tangents_pass_through_sharded_units",),
    ),
)
