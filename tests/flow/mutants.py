"""Mutants of the flow, and of the checks and conversions below it."""

from tests.mutants import Mutant

GUIDANCE = "tests/flow/test_guidance.py"
DISTANCES = "tests/flow/test_distances.py"
VELOCITY = "tests/flow/test_velocity.py"
PATH = ("tests/flow/test_paths.py::test_the_path_runs_from_noise_to_data_with_constant_velocity",)
TASKS = ("tests/flow/test_time_conditioning.py::test_times_of_both_conditioning_strategies",)
HAND_CASE = (f"{GUIDANCE}::test_guided_velocity_on_a_hand_case",)
SCRATCH = (f"{VELOCITY}::test_velocity_from_scratch_is_guided_by_the_networks_own_null",)
GRAPHS = (f"{VELOCITY}::test_targets_have_no_graph",)
PARTS = ("tests/flow/test_interpolant.py::test_a_part_draws_its_rows_of_what_the_whole_step_draws",)

PHASES = "tests/flow/test_phases.py"
FIXED_POINT = (f"{PHASES}::test_the_exact_average_velocity_to_any_end_is_the_fixed_point",)
OVER_THE_PHASE = (f"{PHASES}::test_weights_run_over_the_phase",)
ENDS = (f"{PHASES}::test_ends_of_phases",)
SQUEEZED = (f"{PHASES}::test_times_lie_in_the_phases_and_are_the_same_draws",)

MUTANTS = (
    # phases
    Mutant("flow/phases.py", "right=True", "right=False", ENDS),
    Mutant("flow/phases.py", "(self.bounds[1:], dtype", "(self.bounds[:-1], dtype", ENDS),
    Mutant("flow/phases.py", "(t - begin) / (self.end(t) - begin)", "t / self.end(t)", OVER_THE_PHASE),
    Mutant("flow/phases.py", "Squeezed(time, low, high)", "Squeezed(time, 0.0, high)", SQUEEZED),
    Mutant(
        "flow/times.py", "self.low + (self.high - self.low) * self.time", "self.low + self.high * self.time", SQUEEZED
    ),
    Mutant(
        "flow/times.py",
        "self.shift * t / (1 + (self.shift - 1) * t)",
        "t / (self.shift + (1 - self.shift) * t)",
        (f"{PHASES}::test_a_shift_is_that_of_samplers_and_the_inverse_of_the_families",),
    ),
    Mutant("objectives/facm.py", "dF, v, t_end - t,", "dF, v, 1 - t,", FIXED_POINT),
    Mutant("objectives/facm.py", "s = objective.phases.progress(t)", "s = t", OVER_THE_PHASE),
    Mutant("objectives/facm.py", "objective.beta(s)", "objective.beta(t)", OVER_THE_PHASE),
    Mutant("objectives/facm.py", "objective.alpha(s)", "objective.alpha(t)", OVER_THE_PHASE),
    # the path from noise to data
    Mutant("flow/paths.py", "return (1 - t) * x_0 + t * x_1", "return t * x_0 + (1 - t) * x_1", PATH),
    # times, weights and distances
    Mutant(
        "flow/times.py",
        "torch.exp(self.mean + self.std * z)",
        "torch.exp(self.mean - self.std * z)",
        ("tests/golden/test_golden.py::test_times_of_injected_normals",),
    ),
    Mutant(
        "flow/times.py",
        "torch.sigmoid(self.mean - self.std * z)",
        "torch.sigmoid(self.mean + self.std * z)",
        ("tests/flow/test_times.py::test_a_positive_normal_leads_towards_noise",),
    ),
    Mutant(
        "flow/times.py",
        "return torch.randn(n, generator=rng, device",
        "return torch.randn(n, device",
        ("tests/flow/test_times.py::test_times_are_a_function_of_the_generator_alone",),
    ),
    Mutant(
        "flow/distances.py",
        ".square().flatten(1).mean(1)",
        ".square().flatten(1).sum(1)",
        (f"{DISTANCES}::test_mean_square_is_a_mean_over_the_sample",),
    ),
    Mutant(
        "flow/distances.py",
        "return e / (e.detach() + self.c)",
        "return e / (e + self.c)",
        (f"{DISTANCES}::test_normalised_distance_and_its_gradient_with_the_weight_frozen",),
    ),
    # how the network is told what to predict
    Mutant("flow/time_conditioning.py", 'return {"t": 2 - t}', 'return {"t": 1 + t}', TASKS),
    Mutant("flow/time_conditioning.py", '"r": torch.ones_like(t)}', '"r": t}', TASKS),
    Mutant(
        "flow/conditions.py",
        "torch.where(dropped, null, cond)",
        "torch.where(dropped, cond, null)",
        ("tests/flow/test_conditions.py::test_dropping_replaces_the_marked_labels_and_only_those",),
    ),
    # guidance
    Mutant(
        "flow/guidance.py",
        "(t >= self.low)",
        "(t > self.low)",
        (f"{GUIDANCE}::test_guidance_acts_within_the_interval_ends_included",),
    ),
    Mutant(
        "flow/guidance.py",
        "return v_u + scale * (v_c - v_u)",
        "return v_c + scale * (v_c - v_u)",
        (f"{GUIDANCE}::test_extrapolation_starts_at_the_unconditional_velocity",),
    ),
    Mutant("flow/guidance.py", "taken(null, which)", "taken(cond, which)", HAND_CASE),
    # the velocity target
    Mutant("flow/velocity.py", "v, w = p.v, self", "v, w = p.x_0 - p.x_1, self", SCRATCH),
    Mutant(
        "flow/velocity.py",
        "    needs_teacher = True\n\n    @property\n    def guidance_scale(self) -> float:\n"
        "        return self.guidance.strongest\n\n    @torch.no_grad()\n",
        "    needs_teacher = True\n\n    @property\n    def guidance_scale(self) -> float:\n"
        "        return self.guidance.strongest\n\n",
        GRAPHS,
    ),
    Mutant(
        "flow/velocity.py",
        'most one of them")\n\n    @torch.no_grad()\n',
        'most one of them")\n\n',
        GRAPHS,
    ),
    Mutant("flow/velocity.py", "guided = v + w * (v_c - v_u)", "guided = v + (w - 1) * (v_c - v_u)", SCRATCH),
    Mutant(
        "flow/velocity.py",
        "active = active & ~p.dropped",
        "pass",
        (f"{VELOCITY}::test_dropped_samples_keep_the_velocity_of_the_data",),
    ),
    # draws
    Mutant(
        "flow/interpolant.py", "whole[batch.start : batch.start + len(batch.x_1)]", "whole[: len(batch.x_1)]", PARTS
    ),
    Mutant(
        "flow/interpolant.py",
        "return condition.drop(batch.cond, dropped), dropped",
        "return batch.cond, dropped",
        ("tests/objectives/test_facm.py::test_a_call_draws_noise_times_and_dropped_labels_from_the_generator",),
    ),
    # tensors and seeds
    Mutant(
        "core/tensors.py",
        "(torch.bfloat16, torch.float16) else x",
        "(torch.float16,) else x",
        ("tests/core/test_tensors.py::test_half_precision_is_lifted_to_float32_and_nothing_is_lowered",),
    ),
    Mutant(
        "core/rng.py",
        "np.random.SeedSequence(parts)",
        "np.random.SeedSequence(sum(parts))",
        ("tests/core/test_rng.py::test_seeds_are_a_function_of_every_part_and_of_their_order",),
    ),
    # LPIPS
    Mutant(
        "flow/lpips.py",
        "functional.max_pool2d(h, 2) if place else h",
        "functional.avg_pool2d(h, 2) if place else h",
        ("tests/flow/test_lpips.py::test_the_numbers_are_those_of_the_formula",),
    ),
    Mutant(
        "flow/lpips.py",
        "(a - b).square()).sum(1).mean((1, 2))",
        "(a - b).square()).mean((1, 2, 3))",
        ("tests/flow/test_lpips.py::test_the_numbers_are_those_of_the_formula",),
    ),
    Mutant(
        "flow/lpips.py",
        "min(x.shape[2:]) >= self.resize",
        "min(x.shape[2:]) <= self.resize",
        ("tests/flow/test_lpips.py::test_small_pictures_are_enlarged_and_large_ones_are_not",),
    ),
)
