"""Mutants of the export of text-to-image students."""

from tests.mutants import Mutant

EXPORT = "tests/foundation/test_export.py"
FOLDER = (f"{EXPORT}::test_the_folder_opens_in_diffusers_and_samples_as_this_package_does[wan]",)
SEEDED = (f"{EXPORT}::test_a_seeded_scheduler_repeats_its_noise",)
LAYER = (f"{EXPORT}::test_an_adapter_is_tied_to_its_own_layer",)
COMFYUI = (f"{EXPORT}::test_diffusers_reads_the_file_for_comfyui[wan]",)
LARGEST = (f"{EXPORT}::test_low_rank_keeps_the_largest_directions_and_says_how_much",)

MUTANTS = (
    Mutant(
        "foundation/export/scheduler.py",
        "(1 - lower) * x_1 + lower * noise",
        "(1 - sigma) * x_1 + sigma * noise",
        FOLDER,
    ),
    Mutant("foundation/export/scheduler.py", "generator or self.generator", "generator", SEEDED),
    Mutant("foundation/export/schedule.py", '"stochastic_sampling": True', '"stochastic_sampling": False', FOLDER),
    Mutant("foundation/export/schedule.py", "terminal = 1 / num_steps", "terminal = 1 / (num_steps + 1)", FOLDER),
    Mutant("foundation/export/lora_file.py", '{f"^{name}": rank', "{name: rank", LAYER),
    Mutant("foundation/export/lora_file.py", '"lora_alpha": usual', '"lora_alpha": 2 * usual', LAYER),
    Mutant("foundation/export/comfyui.py", "float(difference.rank), dtype", "1.0, dtype", COMFYUI),
    Mutant("foundation/export/comfyui.py", 'r"blocks.\\1.cross_attn."', 'r"blocks.\\1.self_attn."', COMFYUI),
    Mutant("foundation/export/svd.py", "kept[layer] = square - _square(", "kept[layer] = _square(", LARGEST),
    Mutant("foundation/export/svd.py", "differences[layer], kept[layer] = exact[layer], norms[layer]", "pass", LARGEST),
)
