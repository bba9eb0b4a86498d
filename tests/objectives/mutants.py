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

ASKS = ("tests/objectives/test_scm.py::test_a_call_asks_the_teacher_that_it_is_given",)

MUTANTS = (
    Mutant(
        "objectives/scm.py",
        "return self.scm(network, batch, rng, teacher, self.ramp)",
        "return self.scm(network, batch, rng, None, self.ramp)",
        ASKS,
    ),
    Mutant(
        "objectives/scm.py",
        "self.evaluate(network, point, teacher, ramp)",
        "self.evaluate(network, point, None, ramp)",
        ASKS,
    ),
    Mutant(
        "objectives/scm.py",
        "        self.draws_for_whole_step = scm.draws_for_whole_step\n",
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
        "return _Ramped(self, self.ramp(images_seen))",
        "return _Ramped(self, 1.0)",
        ("tests/objectives/test_scm.py::test_training_tells_the_objective_the_clock",),
    ),
    Mutant(
        "objectives/discrete_cm.py",
        "        with torch.no_grad():\n            f_s",
        "        if True:\n            f_s",
        DISCRETE,
    ),
    Mutant(
        "objectives/imm.py", "        with torch.no_grad():\n            y_r", "        if True:\n            y_r", IMM
    ),
    Mutant("objectives/shortcut_model.py", "t=t, r=t + 2 * d))", "t=t, r=t + d))", SHORTCUT_MODEL),
)
