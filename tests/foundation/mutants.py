"""Mutants of the families, of model folders and of the network around a transformer."""

from tests.mutants import Mutant

STEPS = "tests/foundation/test_conformance.py::test_two_steps_are_those_of_the_pipeline"
GUIDED = "tests/foundation/test_conformance.py::test_two_guided_steps_are_those_of_the_pipeline"
CALL = "tests/foundation/test_conformance.py::test_the_transformer_is_called_with_what_the_pipeline_calls_it_with"
PICTURES = "tests/foundation/test_conformance.py::test_pictures_are_those_of_the_pipeline"
INWARDS = "tests/foundation/test_conformance.py::test_pictures_go_in_as_they_come_out"
BFLOAT16 = "tests/foundation/test_conformance.py::test_in_bfloat16_times_stay_in_float32"
SINUSOIDS = "tests/foundation/test_conformance.py::test_times_enter_where_the_family_says_and_as_fast"
CUT = "tests/foundation/test_conformance.py::test_a_prompt_is_cut_where_the_family_says"
ALONE = "tests/foundation/test_conformance.py::test_prompts_of_unequal_length_in_one_batch_are_each_as_alone"
BASE = "tests/foundation/test_network.py::test_the_base_of_adapters_and_smoothing_is_the_untouched_transformer"
TARGETS = "tests/foundation/test_network.py::test_adapters_sit_on_every_layer_that_the_family_names"
EXPORT = "tests/foundation/test_export.py"
EXPORTED = (f"{EXPORT}::test_the_folder_opens_in_diffusers_and_samples_as_this_package_does[wan]",)
ON_BOTH_HEADS = (f"{EXPORT}::test_the_scheduler_on_both_heads_samples_as_this_package_does[wan]",)
SEEDED = (f"{EXPORT}::test_a_seeded_scheduler_repeats_its_noise",)
OWN_LAYER = (f"{EXPORT}::test_an_adapter_is_tied_to_its_own_layer",)
COMFYUI = (f"{EXPORT}::test_diffusers_reads_the_file_for_comfyui[wan]",)
LARGEST = (f"{EXPORT}::test_low_rank_keeps_the_largest_directions_and_says_how_much",)

EXPERTS = "tests/foundation/test_experts.py"
BOUNDARY = (f"{EXPERTS}::test_a_step_on_the_boundary_is_of_high_noise_as_in_the_pipeline",)
MIXED = (f"{EXPERTS}::test_each_sample_is_asked_of_its_own_expert",)
SCALES = (f"{EXPERTS}::test_each_expert_has_its_own_guidance",)
RESIDENT = (f"{EXPERTS}::test_one_expert_is_brought_at_a_time",)
OWN_BASE = (f"{EXPERTS}::test_the_students_own_base_is_one_of_the_experts",)
MADE = (f"{EXPERTS}::test_the_experts_make_what_their_pipeline_makes",)
PAIRS = "tests/foundation/test_pairs.py"
PHASE_BY_PHASE = (f"{PAIRS}::test_a_pair_is_asked_phase_by_phase",)
ONE_EACH = (f"{PAIRS}::test_one_step_each_is_what_the_stock_pipeline_does",)
MORE = (f"{PAIRS}::test_more_steps_are_what_this_packages_scheduler_does",)
STUDENTS = (f"{PAIRS}::test_students_of_two_experts",)
OF_CLIPS = "tests/foundation/test_clips.py"
PREPARED = "tests/foundation/test_prepare.py"
BY_TEACHER = (f"{PREPARED}::test_the_teacher_makes_what_its_pipeline_makes",)
OF_THE_SEED = (f"{PREPARED}::test_noise_is_of_the_seed_and_the_prompt_and_not_of_the_batch",)
INTO_BUCKETS = (f"{PREPARED}::test_pictures_go_into_buckets_and_are_what_the_vae_makes_of_their_crops",)
MASKED = (f"{PREPARED}::test_embeddings_with_a_mask_have_one_length_and_no_padding_on_the_disk",)
STORED = (f"{PREPARED}::test_types_of_what_is_stored",)
CAPTIONS = "tests/foundation/test_captions.py"
NULL = (f"{CAPTIONS}::test_the_null_is_the_embedding_of_the_negative_prompt",)
READ = (f"{CAPTIONS}::test_reading",)

MUTANTS = (
    Mutant("flow/two_experts.py", ">= 1000 * boundary", "> 1000 * boundary", BOUNDARY),
    Mutant("flow/two_experts.py", "1000 * (1 - t).abs()", "1000 * (1 - t)", BOUNDARY),
    Mutant("flow/two_experts.py", "boundary + min(AVOIDED, (1 - boundary) / 2)", "boundary", BOUNDARY),
    Mutant("flow/two_experts.py", "self.boundary), self.scale, w)", "self.boundary), w, self.scale)", SCALES),
    Mutant("flow/two_experts.py", "max(self.scale, self.scale_2)", "self.scale_2", SCALES),
    Mutant("flow/guidance.py", "guidance.at(t[which], v_u)", "guidance.at(t[:1], v_u)", SCALES),
    Mutant(
        "flow/times.py",
        "self.time.sample(n, rng).sort().values",
        "self.time.sample(n, rng)",
        (f"{EXPERTS}::test_sorted_times_are_the_same_times",),
    ),
    Mutant("foundation/experts/switch.py", "[order.argsort()]", "[order]", MIXED),
    Mutant("foundation/experts/switch.py", "item[0] != there", "item[0] == there", RESIDENT),
    Mutant(
        "foundation/experts/teacher.py", "(base, loaded) if network.part", "(loaded, base) if network.part", OWN_BASE
    ),
    Mutant("foundation/experts/teacher.py", "            self.residence.leave()", "            pass", OWN_BASE),
    Mutant("foundation/captions/manifest.py", "1000 * sigma >= 1000 * self.boundary", "True", MADE),
    Mutant("foundation/experts/pair.py", "just_above(1 - t_b)", "1 - t_b", PHASE_BY_PHASE),
    Mutant("foundation/export/experts.py", "just_above(1 - student.bounds[1])", "1 - student.bounds[1]", ONE_EACH),
    Mutant("foundation/export/schedule.py", "return 1 - bounds[-2] if", "return bounds[-2] if", ONE_EACH),
    Mutant("foundation/export/phased_scheduler.py", "if later < end else", "if later < 1 else", MORE),
    Mutant("foundation/export/phased_scheduler.py", "renoised(x_end, end, later,", "renoised(x_end, 1.0, later,", MORE),
    Mutant("foundation/experts/students.py", '"low-noise": SECOND}', '"low-noise": TRANSFORMER}', STUDENTS),
    Mutant("foundation/experts/students.py", "Phases((0.0, t_b))", "Phases((0.0, boundary))", STUDENTS),
    Mutant("recipes/text_to_image.py", 'second if student == "low-noise" else first', "first", STUDENTS),
    Mutant("recipes/text_to_image.py", "Shifted(time, 1 / shift)", "Shifted(time, shift)", STUDENTS),
    Mutant("foundation/families/z_image.py", "return 1.0 + guidance_scale", "return guidance_scale", (GUIDED,)),
    Mutant("foundation/families/z_image.py", "prompt[:length]", "prompt", (STEPS, ALONE)),
    Mutant("foundation/families/z_image.py", '"guidance_scale": 0.0', '"guidance_scale": 1.0', (CALL,)),
    Mutant("foundation/families/qwen_image.py", "guided * (norms[0] / norms[1])", "guided", (GUIDED,)),
    Mutant(
        "foundation/families/qwen_image.py",
        "exact_time(transformer.time_text_embed, 1 - t)",
        "exact_time(transformer.time_text_embed, t)",
        (BFLOAT16,),
    ),
    Mutant("foundation/families/qwen_image.py", "- pipe.prompt_template_encode_start_idx", "", (CUT,)),
    Mutant("foundation/families/lumina2.py", "guided * (norms[0] / norms[1])", "guided", (GUIDED,)),
    Mutant("foundation/families/lumina2.py", "timestep=t,", "timestep=1 - t,", (CALL, STEPS)),
    Mutant("foundation/families/lumina2.py", "if negative:", "if not negative:", (STEPS, GUIDED)),
    Mutant("foundation/families/sana.py", "None if negative else", "", (GUIDED,)),
    Mutant("foundation/families/sana.py", "(1 - t) * transformer.config.timestep_scale", "(1 - t)", (CALL, STEPS)),
    Mutant("foundation/families/flux.py", "return -unpacked_squares", "return unpacked_squares", (STEPS,)),
    Mutant("foundation/families/flux.py", "rows_and_columns.float()", "rows_and_columns.float() * 0", (CALL, STEPS)),
    Mutant("foundation/families/flux2.py", ".transpose(1, 2).reshape(x.shape)", ".reshape(x.shape)", (STEPS,)),
    Mutant(
        "foundation/families/sd3.py", 'transformer, cond["pooled"]', 'transformer, 0 * cond["pooled"]', (CALL, STEPS)
    ),
    Mutant("foundation/families/ltx.py", "POSITIONS = (8 / 25, 32, 32)", "POSITIONS = (8 / 24, 32, 32)", (CALL,)),
    Mutant("foundation/families/wan.py", "TOKENS = 512", "TOKENS = 226", (CALL, STEPS)),
    Mutant("foundation/families/autoencoders.py", "(mode - mean) / std", "mode / std - mean", (INWARDS,)),
    Mutant("foundation/families/autoencoders.py", "+ vae.config.shift_factor", "", (PICTURES,)),
    Mutant("foundation/families/precision.py", "if not _autocast(time) and", "if", (BFLOAT16,)),
    Mutant("foundation/families/sinusoids.py", ") / half) * factor", ") / (half - 1)) * factor", (SINUSOIDS,)),
    Mutant("foundation/families/prompts.py", ".masked_fill(~mask.unsqueeze(-1), 0.0)", "", (CALL,)),
    Mutant("foundation/lora.py", "target_modules=adapted", "target_modules=list(wanted)", (TARGETS,)),
    Mutant("foundation/network.py", "self.smoothing.on = False", "self.smoothing.on = True", (BASE,)),
    Mutant(
        "foundation/folder.py",
        "entry[0] not in LIBRARIES or",
        "",
        ("tests/foundation/test_folder.py::test_components_that_bring_code_are_refused",),
    ),
    Mutant(
        "foundation/export/scheduler.py",
        "(1 - lower) * x_1 + lower * fresh",
        "(1 - sigma) * x_1 + sigma * fresh",
        EXPORTED,
    ),
    Mutant("foundation/export/scheduler.py", "generator or self.generator", "generator", SEEDED),
    Mutant(
        "foundation/export/schedule.py",
        '"stochastic_sampling": tuple(bounds) == WHOLE',
        '"stochastic_sampling": False',
        EXPORTED,
    ),
    Mutant(
        "foundation/export/flow_jump_scheduler.py",
        'return 1 - t if self.of == "jump" else t - 1',
        "return 1 - t",
        ON_BOTH_HEADS,
    ),
    Mutant("foundation/export/flow_jump_scheduler.py", "(self._slope + F) / 2", "F", ON_BOTH_HEADS),
    Mutant("foundation/export/schedule.py", "terminal = 1 / num_steps", "terminal = 1 / (num_steps + 1)", EXPORTED),
    Mutant("foundation/export/lora_file.py", '{f"^{name}": rank', "{name: rank", OWN_LAYER),
    Mutant("foundation/export/lora_file.py", '"lora_alpha": usual', '"lora_alpha": 2 * usual', OWN_LAYER),
    Mutant("foundation/export/comfyui.py", "float(difference.rank), dtype", "1.0, dtype", COMFYUI),
    Mutant("foundation/export/comfyui.py", 'r"blocks.\\1.cross_attn."', 'r"blocks.\\1.self_attn."', COMFYUI),
    Mutant("foundation/export/svd.py", "kept[layer] = square - _square(", "kept[layer] = _square(", LARGEST),
    Mutant("foundation/export/svd.py", "differences[layer], kept[layer] = exact[layer], norms[layer]", "pass", LARGEST),
    Mutant("foundation/prepare/samples.py", "x + (sigma - after) * v", "x + (after - sigma) * v", BY_TEACHER),
    Mutant("foundation/prepare/samples.py", "1 - sigma, dtype", "1 - after, dtype", BY_TEACHER),
    Mutant("foundation/prepare/samples.py", "v = family.guide(v,", "family.guide(v,", BY_TEACHER),
    Mutant("foundation/prepare/samples.py", "noise(teacher.seed,", "noise(0,", OF_THE_SEED),
    Mutant("foundation/prepare/samples.py", "pictures.image(order[place])", "pictures.image(place)", INTO_BUCKETS),
    Mutant("foundation/prepare/samples.py", 'if settings.latents == "bf16"', "if False", STORED),
    Mutant("foundation/prepare/text.py", "own = own[: _length(own if mask is None else mask[i])]", "pass", MASKED),
    Mutant("foundation/prepare/text.py", "-(-longest[name] // LENGTHS) * LENGTHS", "longest[name]", MASKED),
    Mutant(
        "foundation/prepare/text.py",
        "encoded(family, pipe, [settings.negative_prompt]",
        'encoded(family, pipe, [""]',
        BY_TEACHER,
    ),
    Mutant("foundation/prepare/text.py", "texts + batch", "batch + texts", OF_THE_SEED),
    Mutant(
        "foundation/captions/condition.py",
        "chosen(dropped, self.null(cond), cond)",
        "chosen(~dropped, self.null(cond), cond)",
        NULL,
    ),
    Mutant("foundation/captions/dataset.py", "row[: len(value)] = value", "row[-len(value) :] = value", BY_TEACHER),
    Mutant(
        "foundation/captions/dataset.py",
        'self._starts, indices, side="right") - 1',
        'self._starts, indices, side="left") - 1',
        READ,
    ),
    Mutant(
        "foundation/prepare/sizes.py",
        "(frames - 1) % multiple",
        "frames % multiple",
        (f"{OF_CLIPS}::test_models_make_so_many_frames_and_no_others",),
    ),
    Mutant(
        "foundation/prepare/samples.py",
        "crops.transpose(3, 0, 1, 2)",
        "crops[::-1].transpose(3, 0, 1, 2)",
        (f"{OF_CLIPS}::test_clips_are_what_the_vae_makes_of_their_first_frames",),
    ),
    Mutant(
        "foundation/prepare/clips.py",
        "key=_by_numbers",
        "key=str",
        (f"{OF_CLIPS}::test_folders_of_frames_are_clips_with_the_text_of_their_name",),
    ),
    Mutant(
        "foundation/prepare/settings.py",
        "self.frames > 1 or name not in",
        "name not in",
        (f"{OF_CLIPS}::test_pictures_are_recorded_as_before_there_were_clips",),
    ),
    Mutant(
        "foundation/prompting.py",
        "1 + (frames - 1) // family",
        "frames // family",
        (f"{OF_CLIPS}::test_shapes_of_what_is_sampled",),
    ),
)
