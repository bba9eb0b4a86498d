"""Mutants of what the ranks share."""

from tests.mutants import Mutant

TRAINING = "tests/distributed/test_training.py"
RANKS = "tests/distributed/test_two_ranks.py"
TWO = (f"{RANKS}::test_weights_averages_moments_and_log_are_those_of_one_process",)
RESUMED = (f"{RANKS}::test_a_run_that_one_rank_stopped_goes_on_bit_for_bit",)
REDUCING = (
    "tests/distributed/test_gradients.py::test_gradients_are_reduced_between_replicas_in_the_last_part_of_a_step",
)
MISUSE = (f"{RANKS}::test_misuse_is_named_on_every_rank",)

MUTANTS = (
    Mutant(
        "distributed/gradients.py",
        "return contextlib.nullcontext() if last else wrapped.no_sync()",
        "return wrapped.no_sync()",
        TWO,
    ),
    Mutant("distributed/gradients.py", "if not _close(reference[1], other[1]):", "if False:", MISUSE),
    Mutant(
        "training/trainer.py",
        "start,\n                stream.batch_size",
        "k * size,\n                stream.batch_size",
        TWO,
    ),
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
        ("tests/training/test_state.py::test_a_rank_gets_its_own_part_of_the_logs_window_back",),
    ),
    Mutant(
        "distributed/forward_ad_hooks.py",
        "x if tangent is None else fwd.make_dual(x, tangent.to(x.dtype))",
        "x",
        (f"{RANKS}::test_tangents_pass_through_sharded_units",),
    ),
    Mutant("distributed/gradients.py", "        wrapped.set_requires_all_reduce(last)\n", "        pass\n", REDUCING),
    Mutant(
        "training/trainer.py",
        "numbers = means(self.world, window.means())",
        "numbers = window.means()",
        TWO,
    ),
    Mutant(
        "training/trainer.py",
        "seed_generators(derive(run.seed, 2, state.images, self.world.rank))",
        "seed_generators(derive(run.seed, 2, state.images))",
        (f"{RANKS}::test_every_rank_has_dropout_masks_of_its_own",),
    ),
    Mutant("training/trainer.py", "any_of(self.world, bool(stop))", "bool(stop)", RESUMED),
    Mutant("training/build.py", "        check_parameters(network, world)\n", "        pass\n", MISUSE),
    Mutant("training/trainer.py", "(() if shared else (1 + batch.start,))", "((1 + batch.start,))", TWO),
)
