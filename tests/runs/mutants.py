"""Mutants of what a run keeps: averages, rates, checkpoints and names on disk."""

from tests.mutants import Mutant

EMA = "tests/runs/test_ema.py"
FOLDER = "tests/runs/test_folder.py"
FIRST = "tests/runs/test_first_version.py"
CHECKPOINT = "tests/runs/test_checkpoint.py"
OTHERS = "tests/runs/test_folder_of_others.py"
TRUST = "tests/runs/test_trust.py"
GENERATORS = ("tests/core/test_rng.py::test_the_state_of_the_global_generators_is_all_of_it",)

MUTANTS = (
    # averages
    Mutant(
        "runs/ema.py",
        "batch_size / (images_seen + batch_size)",
        "batch_size / images_seen",
        (f"{EMA}::test_decay_of_a_step",),
    ),
    Mutant(
        "runs/ema.py",
        "if images_seen <= batch_size:",
        "if images_seen < batch_size:",
        (f"{EMA}::test_first_update_forgets_the_initial_weights",),
    ),
    Mutant(
        "runs/ema.py",
        "                average[name].copy_(current[name])",
        "                pass",
        (f"{EMA}::test_averages_are_copies_and_buffers_and_frozen_parameters_follow_the_network",),
    ),
    Mutant(
        "runs/ema.py",
        "if s.images_seen <= images_seen]",
        "]",
        (f"{EMA}::test_snapshots_after_the_wanted_moment_are_left_out",),
    ),
    # learning rate
    Mutant(
        "runs/optim.py",
        "self.lr * warmup * self.decay(",
        "self.lr * self.decay(",
        ("tests/runs/test_optim.py::test_learning_rate_warms_up_linearly_and_then_decays_over_the_whole_run",),
    ),
    # checkpoints
    Mutant(
        "runs/checkpoint.py",
        'if digest(tensors) != said.get("sha256"):',
        "if False:",
        (f"{CHECKPOINT}::test_every_flipped_byte_is_noticed",),
    ),
    Mutant(
        "runs/checkpoint.py",
        'if said.get("meta_sha256") != _sha256(meta):',
        "if False:",
        (f"{CHECKPOINT}::test_every_flipped_byte_is_noticed",),
    ),
    Mutant(
        "runs/checkpointer.py",
        "if file_sha256(file, links=False) != sha256:",
        "if False:",
        ("tests/distributed/test_failures.py::test_a_damaged_one_is_named_and_the_one_before_loads",),
    ),
    Mutant(
        "runs/checkpointer.py",
        "        os.replace(path, gone)\n        shutil.rmtree(gone)\n",
        "        shutil.rmtree(path)\n",
        ("tests/runs/test_checkpointer.py::test_a_directory_is_removed_under_another_name",),
    ),
    Mutant(
        "core/files.py",
        "        partial.chmod(0o666 & ~UMASK)",
        "        pass",
        ("tests/runs/test_checkpointer.py::test_whole_tensors_are_a_file_that_others_may_read_as_the_umask_says",),
    ),
    Mutant(
        "core/rng.py",
        'random.setstate((version, tuple(tensors["python"].tolist()), gauss))',
        'random.setstate((version, tuple(tensors["python"].tolist()), None))',
        GENERATORS,
    ),
    Mutant("core/rng.py", "position, has_gauss, cached))", "position))", GENERATORS),
    # names on disk
    Mutant(
        "runs/folder.py",
        'self.inside("ema") / f"{images:012d}-{sigma_rel}.safetensors"',
        'self.inside("ema") / f"{images:012d}-{sigma_rel:.1f}.safetensors"',
        (f"{FOLDER}::test_ema_snapshots_of_close_lengths_are_kept_apart",),
    ),
    Mutant(
        "core/public_names.py",
        '"conditions": ("Labels", "Unconditional"),',
        '"conditions": ("Labels",),',
        (f"{FIRST}::test_run_folder_opens_and_is_recorded_by_public_names_now",),
    ),
    Mutant(
        "core/serialize.py",
        "    if recorded == fingerprint(value):\n        return True\n",
        "    return recorded == fingerprint(value)\n",
        (f"{FIRST}::test_run_folder_opens_and_is_recorded_by_public_names_now",),
    ),
    Mutant(
        "core/serialize.py",
        "if f.init and not _at_default(f, getattr(value, f.name))]",
        "if f.init]",
        ("tests/core/test_serialize.py::test_a_run_made_before_a_component_got_a_field_is_still_itself",),
    ),
    Mutant(
        "runs/folder.py",
        'if not isinstance(run, Run) or not is_fingerprint_of(record.get("fingerprint"), run):',
        "if not isinstance(run, Run):",
        (f"{FOLDER}::test_an_edited_run_json_is_refused",),
    ),
    Mutant(
        "runs/checkpointer.py",
        'and not is_fingerprint_of(meta.get("run"), run):',
        "and False:",
        ("tests/training/test_state.py::test_the_checkpoint_of_another_recipe_is_refused",),
    ),
    Mutant(
        "runs/checkpointer.py",
        "if said[what] != value or",
        "if",
        (f"{OTHERS}::test_a_checkpoint_of_another_clock_is_refused_naming_both",),
    ),
    # folders from others
    Mutant(
        "runs/folder.py",
        "    elif not is_trusted(recipe.content, home):\n",
        "    elif False:\n",
        (f"{TRUST}::test_every_command_refuses_by_name_and_executes_nothing",),
    ),
    Mutant(
        "runs/trust.py",
        " and (str(home.resolve()) in folders or not home.exists())",
        "",
        (f"{TRUST}::test_a_known_recipe_with_other_modules_to_import_is_another_one",),
    ),
    Mutant(
        "runs/recipe_file.py",
        'exec(compile(self.content, self.file, "exec", dont_inherit=True), vars(module))',
        "spec.loader.exec_module(module)",
        (f"{TRUST}::test_byte_code_beside_the_recipe_is_not_executed",),
    ),
    Mutant(
        "core/files.py",
        " | os.O_NOFOLLOW",
        "",
        ("tests/core/test_files.py::test_what_is_written_in_place_is_a_regular_file",),
    ),
    Mutant(
        "core/claims.py",
        "if is_at(handle, folder / LOCK):",
        "if True:",
        ("tests/core/test_claims.py::test_a_lock_that_its_holder_removed_holds_nothing",),
    ),
    Mutant(
        "runs/log.py",
        " and os.fstat(handle).st_nlink == 1",
        "",
        ("tests/runs/test_log.py::test_a_log_with_another_name_elsewhere_gets_a_copy_of_its_own",),
    ),
)
