"""Mutants of the total derivative."""

from tests.mutants import Mutant

STRATEGIES = "tests/derivative/test_strategies.py"
RULES = "tests/derivative/test_tangent_rules.py"
AWKWARD = (f"{RULES}::test_strategies_agree_on_awkward_operations",)
LAYERS = (f"{STRATEGIES}::test_strategies_agree_on_every_kind_of_layer",)
NO_GRAPH = (f"{STRATEGIES}::test_the_tangent_leaves_no_graph_and_costs_one_pass",)
KERNEL = ("tests/derivative/attention/test_attention.py::test_kernel_is_the_plain_formula[one of each]",)
ATTENTION = ("tests/derivative/attention/test_attention.py::test_plain_is_forward_mode",)

MUTANTS = (
    Mutant("derivative/whole_network.py", "return value, tangent.detach()", "return value, tangent", LAYERS),
    Mutant(
        "derivative/no_graph.py", "with torch.no_grad():\n        tangent =", "if True:\n        tangent =", NO_GRAPH
    ),
    Mutant(
        "derivative/fixed_dropout.py",
        "            torch.set_rng_state(self.state)",
        "            pass",
        (f"{STRATEGIES}::test_one_mask_within_a_step_and_another_in_the_next",),
    ),
    Mutant(
        "derivative/chain.py",
        "return out if tangent is None else fwd.make_dual(primal, tangent.detach())",
        "return out if tangent is None else fwd.make_dual(primal, tangent)",
        (f"{STRATEGIES}::test_the_tangents_graph_ends_at_the_end_of_its_block",),
    ),
    Mutant(
        "derivative/chain.py",
        "                draws.replay()",
        "                pass",
        (f"{STRATEGIES}::test_a_chain_is_the_whole_network_with_its_dropout",),
    ),
    Mutant(
        "derivative/chain.py",
        "at_least_float32(inner.leave(*state))",
        "inner.leave(*state)",
        (f"{STRATEGIES}::test_value_and_tangent_of_a_network_in_half_precision_are_in_single",),
    ),
    Mutant("derivative/tangent_rules.py", "torch.addcmul(d * q, p, e)", "d * q", AWKWARD),
    Mutant("derivative/tangent_rules.py", "        rest[1] = None", "        pass", AWKWARD),
    Mutant(
        "derivative/tangent_rules.py",
        "        rewind()\n",
        "        pass\n",
        (f"{RULES}::test_value_and_tangent_draw_the_same[dropout]",),
    ),
    Mutant(
        "derivative/attention/reference.py",
        "(moved - (weights * moved).sum(-1, keepdim=True))",
        "moved",
        ATTENTION,
    ),
    Mutant("derivative/attention/triton_kernel.py", "total1 - mean[:, None] * o1.to(tl.float32)", "total1", KERNEL),
    Mutant("derivative/attention/triton_kernel.py", "total2 - mean[:, None] * o2.to(tl.float32)", "total2", KERNEL),
    Mutant(
        "derivative/attention/triton_kernel.py", "first + columns[None, :])", "first + columns[None, :] + 1)", KERNEL
    ),
    Mutant("derivative/attention/triton_kernel.py", "            DV += BN * dv_row * UNIT\n", "", KERNEL),
    Mutant(
        "derivative/attention/triton_kernel.py",
        "            if HAS_DQ:\n                moved",
        "            if HAS_DQ and HAS_DK:\n                moved",
        KERNEL,
    ),
)
