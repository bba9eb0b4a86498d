"""Mutants of the solvers and of what they are asked with."""

from tests.mutants import Mutant

SAMPLERS = "tests/sampling/test_samplers.py"
BY_HAND = (f"{SAMPLERS}::test_consistency_steps_by_hand",)
EULER_HEUN = (f"{SAMPLERS}::test_euler_and_heun_by_hand",)
HEADS = (f"{SAMPLERS}::test_methods_ask_the_right_head_with_the_right_schedule_and_draws",)

PHASED = "tests/sampling/test_phased.py"
INSIDE = (f"{PHASED}::test_renoising_inside_a_phase_by_hand",)
ACROSS = (f"{PHASED}::test_a_step_for_each_phase_is_the_flow_and_draws_nothing",)
OWN_METHOD = (f"{PHASED}::test_each_student_is_sampled_by_its_own_method",)

BOTH = "tests/sampling/test_flow_then_jump.py"
FLOW_BY_HAND = (f"{BOTH}::test_steps_by_hand",)
BOTH_HEADS = (f"{BOTH}::test_it_asks_both_heads_and_says_what_it_spends",)
NEEDS_BOTH = (f"{BOTH}::test_it_needs_both_fields",)

MOVES = "tests/sampling/test_moves.py"
MOVES_BY_HAND = (f"{MOVES}::test_moves_by_hand",)
NUMBERS_BY_HAND = (f"{MOVES}::test_numbers_place_times_by_hand",)
STORED = (f"{MOVES}::test_a_schedule_is_of_its_network_and_its_numbers_of_evaluations",)

MUTANTS = (
    # move by move
    Mutant("sampling/moves.py", "slope = d + h / (2 * h_before) *", "slope = d + h_before / (2 * h) *", MOVES_BY_HAND),
    Mutant("sampling/moves.py", "(d + at_time(v, x + h * d, t_next,", "(d + at_time(v, x + h * d, t,", MOVES_BY_HAND),
    Mutant(
        "sampling/moves.py",
        "fresh_noise(jumps).to(x), None",
        "fresh_noise(jumps).to(x), before",
        (f"{MOVES}::test_adams_after_a_jump_does_not_extrapolate_across_it",),
    ),
    Mutant("sampling/moves.py", "+ (1 - t_next) * fresh_noise", "+ (1 - t) * fresh_noise", MOVES_BY_HAND),
    Mutant("sampling/moves.py", '"heun": 2', '"heun": 1', MOVES_BY_HAND),
    Mutant(
        "sampling/methods.py",
        'v = fields.velocity("anchor") if',
        'v = fields.velocity("native") if',
        (f"{MOVES}::test_it_asks_both_heads_for_the_noise_of_each_jump",),
    ),
    Mutant(
        "sampling/methods.py",
        "flow=self.uses_the_flow)",
        "flow=False)",
        (f"{MOVES}::test_the_flow_must_have_been_learned_only_where_it_is_followed",),
    ),
    Mutant(
        "sampling/families.py",
        "end = at + left.pop(0) * (LATEST - at)\n            uneven",
        "end = left.pop(0)\n            uneven",
        NUMBERS_BY_HAND,
    ),
    Mutant("sampling/families.py", "s = 16.0 ** (uneven - 0.5)", "s = 16.0 ** (0.5 - uneven)", NUMBERS_BY_HAND),
    Mutant("sampling/schedule.py", "if network != self.network:", "if False:", STORED),
    # along the flow, then a jump
    Mutant(
        "sampling/methods.py",
        'v, F = fields.velocity("anchor")',
        'v, F = fields.velocity("native")',
        BOTH_HEADS,
    ),
    Mutant("sampling/methods.py", '(*steps, "jump")', '("jump", *steps)', FLOW_BY_HAND),
    Mutant(
        "sampling/methods.py",
        "not interface.learns_shortcut or (flow and not interface.learns_flow)",
        "not interface.learns_shortcut",
        NEEDS_BOTH,
    ),
    # phase by phase
    Mutant("sampling/solvers.py", "x + (end - t) * at_time", "x + (1 - t) * at_time", INSIDE),
    Mutant("sampling/solvers.py", "1 - t, t / end", "1 - t, t", INSIDE),
    Mutant("sampling/solvers.py", "s**2 - (kept * (1 - end)) ** 2", "s**2", INSIDE),
    Mutant("sampling/solvers.py", "* noise.to(x_end)", "* 0", INSIDE),
    Mutant("sampling/solvers.py", " or times[i + 1] == end", "", ACROSS),
    Mutant("sampling/methods.py", "if interface.bounds != self.bounds:", "if False:", OWN_METHOD),
    Mutant("sampling/methods.py", '_check_whole(f"nfe = {nfe}", interface)', "pass", OWN_METHOD),
    Mutant("sampling/solvers.py", "x = t * x_1_hat + (1 - t) * fresh", "x = (1 - t) * x_1_hat + t * fresh", BY_HAND),
    Mutant(
        "sampling/solvers.py",
        "        x = x + (t_next - t) * at_time",
        "        x = x + (t - t_next) * at_time",
        EULER_HEUN,
    ),
    Mutant(
        "sampling/solvers.py",
        "(ahead - here) / (here - behind) / 2",
        "(ahead - here) / (here - behind)",
        (f"{SAMPLERS}::test_dpm_solver_pp_by_hand",),
    ),
    Mutant(
        "sampling/solvers.py",
        "y_next = y + (lower - sigma) * (d + slope(y_next, lower)) / 2",
        "y_next = y + (lower - sigma) * (d + slope(y, lower)) / 2",
        (f"{SAMPLERS}::test_edm_heun_by_hand",),
    ),
    Mutant(
        "sampling/methods.py",
        "times = solvers.shifted_times((self.nfe + 1) // 2,",
        "times = solvers.shifted_times(self.nfe,",
        HEADS,
    ),
    Mutant(
        "sampling/methods.py",
        "solvers.consistency(fields.shortcut(),",
        "solvers.consistency(fields.velocity('anchor'),",
        HEADS,
    ),
    Mutant(
        "sampling/source.py", 'self.task.anchor if head == "anchor"', 'self.task.shortcut if head == "anchor"', HEADS
    ),
    Mutant(
        "sampling/generate.py",
        "derive(seed, i, draw)",
        "derive(seed, i)",
        (f"{SAMPLERS}::test_noise_is_a_function_of_seed_index_and_draw_alone",),
    ),
)
