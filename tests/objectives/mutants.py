"""Mutants of the objectives."""

from tests.mutants import Mutant

OBJECTIVES = "tests/objectives/test_facm.py"
SLOWLY = "test_value_and_gradient_match_the_equations_written_slowly"
FACM = (f"{OBJECTIVES}::{SLOWLY}",)
HAND_CASE = ("tests/objectives/test_consistency_target.py::test_shortcut_target_on_a_hand_case",)
GRAPHS = ("tests/objectives/test_facm.py::test_only_the_predictions_carry_a_graph",)
FLOW = ("tests/objectives/test_flow_matching.py::test_flow_matching_with_mixed_conditioning_matches_the_slow_loop",)
MEAN_FLOW = (f"tests/objectives/test_mean_flow.py::{SLOWLY}",)
SCM = (f"tests/objectives/test_scm.py::{SLOWLY}",)
IMM = (f"tests/objectives/test_imm.py::{SLOWLY}",)
SHORTCUT_MODEL = (f"tests/objectives/test_shortcut_model.py::{SLOWLY}",)
DISCRETE = ("tests/objectives/test_discrete_cm.py::test_value_and_gradient_match_the_equation_written_slowly",)
TRACT = (f"tests/objectives/test_tract.py::{SLOWLY}",)
AYF = (f"tests/objectives/test_align_your_flow.py::{SLOWLY}",)

ASKS = ("tests/objectives/test_scm.py::test_a_call_asks_the_teacher_that_it_is_given",)

MUTANTS = (
    Mutant(
        "objectives/bound.py",
        "self.objective(network, batch, rng, teacher, **self.further)",
        "self.objective(network, batch, rng, None, **self.further)",
        ASKS,
    ),
    Mutant(
        "objectives/scm.py",
        "self.evaluate(network, point, teacher, ramp)",
        "self.evaluate(network, point, None, ramp)",
        ASKS,
    ),
    Mutant(
        "objectives/bound.py",
        "        self.draws_for_whole_step = objective.draws_for_whole_step\n",
        "",
        ("tests/objectives/test_scm.py::test_what_is_warmed_up_is_the_objective_in_all_else",),
    ),
    # the relaxed target, Eq. 11-13
    Mutant("objectives/consistency_target.py", "F_sg = F_CM.detach()", "F_sg = F_CM", GRAPHS),
    Mutant("objectives/consistency_target.py", "g = F_sg - v_bar", "g = v_bar - F_sg", HAND_CASE),
    Mutant(
        "objectives/consistency_target.py",
        "F_sg - expand(alpha, v) * g_clamped",
        "F_sg - (expand(alpha, v) * g).clamp(-(clamp or torch.inf), clamp)",
        HAND_CASE,
    ),
    Mutant(
        "objectives/consistency_target.py",
        "g.clamp(-clamp, clamp)",
        "g.clamp(-1, 1)",
        (f"{OBJECTIVES}::test_clamp_off_and_at_other_bounds",),
    ),
    Mutant(
        "objectives/consistency_target.py",
        "return same_dropout(network)",
        "return network",
        ("tests/objectives/test_facm.py::test_anchor_shortcut_and_guidance_of_one_step_see_one_dropout_mask",),
    ),
    # FACM, Algorithm 1
    Mutant(
        "objectives/facm.py", "Prediction(network, self.task.anchor,", "Prediction(network, self.task.shortcut,", FACM
    ),
    Mutant(
        "objectives/facm.py",
        "Prediction(network, objective.task.shortcut,",
        "Prediction(network, objective.task.anchor,",
        FACM,
    ),
    Mutant("objectives/facm.py", "(v, torch.ones_like(t))", "(v, torch.zeros_like(t))", FACM),
    Mutant("objectives/facm.py", "(v, torch.ones_like(t))", "(point.v, torch.ones_like(t))", FACM),
    Mutant("objectives/facm.py", "L_CM = objective.beta(s) * L_norm", "L_CM = L_norm", FACM),
    Mutant(
        "objectives/facm.py", "objective.shortcut(F_CM, target.v_tar)", "objective.shortcut(F_CM, target.v_bar)", FACM
    ),
    Mutant("objectives/facm.py", "(self.L_FM + self.L_CM).mean()", "(self.L_FM + self.L_norm).mean()", FACM),
    Mutant(
        "objectives/facm.py",
        "        return Loss(self.L_CM.mean(), terms)",
        "        return Loss(self.L_norm.mean(), terms)",
        ("tests/objectives/test_facm.py::test_the_parts_of_facms_loss_and_of_its_gradient_add_up_to_the_whole",),
    ),
    Mutant(
        "objectives/facm.py",
        "return lambda: anchor().loss().at(point.t), lambda: shortcut().loss().at(point.t)",
        "first, second = anchor().loss(), shortcut().loss()\n        return lambda: first, lambda: second",
        ("tests/objectives/test_facm.py::test_the_anchors_backward_pass_ends_before_the_shortcut_is_asked",),
    ),
    # the others
    Mutant(
        "objectives/flow_matching.py",
        "torch.where(anchored, c_FM[name], c)",
        "torch.where(anchored, c, c_FM[name])",
        FLOW,
    ),
    Mutant("objectives/mean_flow.py", "expand(r - point.t, v) * dF", "expand(1 - point.t, v) * dF", MEAN_FLOW),
    Mutant("objectives/scm.py", "ramp * (1 - expand(t, v)) * dF", "(1 - expand(t, v)) * dF", SCM),
    Mutant(
        "objectives/scm.py",
        "g / (expand(g.square().flatten(1).mean(1).sqrt(), g)",
        "g / (expand(g.square().flatten(1).sum(1).sqrt(), g)",
        SCM,
    ),
    Mutant(
        "objectives/scm.py",
        "return Bound(self, ramp=self.ramp(images_seen))",
        "return Bound(self, ramp=1.0)",
        ("tests/objectives/test_scm.py::test_training_tells_the_objective_the_clock",),
    ),
    Mutant(
        "objectives/discrete_cm.py",
        "        with torch.no_grad():\n            F_s",
        "        if True:\n            F_s",
        DISCRETE,
    ),
    Mutant(
        "objectives/imm.py", "        with torch.no_grad():\n            y_r", "        if True:\n            y_r", IMM
    ),
    Mutant("objectives/shortcut_model.py", "t=t, r=t + 2 * d))", "t=t, r=t + d))", SHORTCUT_MODEL),
    Mutant(
        "objectives/discrete_cm.py",
        "F if average is None else Prediction(average, self.task.shortcut, point.cond)",
        "F",
        ("tests/objectives/test_discrete_cm.py::test_an_average_of_the_network_may_answer_at_the_later_time",),
    ),
    # TRACT
    Mutant("objectives/tract.py", "torch.maximum(1 - t, t).square()", "torch.maximum(1 - t, t)", TRACT),
    Mutant(
        "objectives/tract.py",
        "(index + 1) % size > 0",
        "(index + 1) % size >= 0",
        ("tests/objectives/test_tract.py::test_the_student_of_one_phase_teaches_the_next",),
    ),
    Mutant("objectives/tract.py", "expand(t_end - t_next, v) * F_next", "expand(t_end - t, v) * F_next", TRACT),
    Mutant("objectives/tract.py", "(x_next, t_next)\n", "(x_next, t)\n", TRACT),
    Mutant("objectives/tract.py", "network if average is None else average", "network", TRACT),
    Mutant(
        "objectives/bound.py",
        "self.objective(network, batch, rng, teacher, **self.further)",
        "self.objective(network, batch, rng, teacher)",
        ("tests/objectives/test_tract.py::test_what_asks_the_average_is_the_objective_in_all_else",),
    ),
    Mutant(
        "runs/self_teacher.py",
        "(1 - self.momentum) / (1 - self.momentum**steps)",
        "1 - self.momentum",
        ("tests/objectives/test_tract.py::test_the_average_has_no_bias_of_its_start",),
    ),
    Mutant(
        "training/trainer.py",
        "state.self_teacher.update(state.network, state.steps)",
        "state.self_teacher.update(state.network, 1)",
        ("tests/objectives/test_tract.py::test_the_average_in_the_checkpoint_is_that_of_the_weights_after_each_step",),
    ),
    Mutant(
        "training/state.py",
        'tensors |= {f"self_teacher/{name}": value for name, value in averaged.items()}',
        "tensors |= {}",
        ("tests/objectives/test_tract.py::test_training_keeps_the_average_and_goes_on_with_it_bit_for_bit",),
    ),
    Mutant(
        "training/trainer.py",
        "objective = objective.asking(self.state.self_teacher.network)",
        "pass",
        ("tests/objectives/test_tract.py::test_training_asks_the_average",),
    ),
    # Align Your Flow
    Mutant("objectives/align_your_flow.py", "warm * expand(r - t, v) * dF", "expand(r - t, v) * dF", AYF),
    Mutant("objectives/align_your_flow.py", "g = F.detach() - v - warm", "g = F.detach() - v + warm", AYF),
    Mutant(
        "objectives/align_your_flow.py",
        ".mean(1).sqrt(), g) + self.normalise",
        ".sum(1).sqrt(), g) + self.normalise",
        AYF,
    ),
    Mutant(
        "objectives/align_your_flow.py",
        "min(self.warmed_up, images_seen / self.warmup_images)",
        "self.warmed_up * min(1, images_seen / self.warmup_images)",
        (
            "tests/objectives/test_align_your_flow.py::test_the_derivative_is_warmed_up_in_proportion_to_the_images_seen",
        ),
    ),
    Mutant(
        "objectives/align_your_flow.py",
        ".to(x_0.dtype) * (1 - apart)",
        ".to(x_0.dtype)",
        (
            "tests/objectives/test_align_your_flow.py"
            "::test_lengths_of_jumps_are_drawn_and_their_starts_are_uniform_in_what_is_left",
        ),
    ),
)
