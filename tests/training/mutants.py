"""Mutants of the training step, of what is resumed, and of what is checked before."""

from tests.mutants import Mutant

RANKS = "tests/distributed/test_training.py"
STATE = "tests/training/test_state.py"
TRAINER = "tests/training/test_trainer.py"
CRASH = (f"{STATE}::test_a_crash_changes_nothing",)
SKIPPED = (f"{TRAINER}::test_a_skipped_step_leaves_weights_and_optimiser_alone_and_is_counted",)
ORACLE = "tests/training/test_oracle.py"
TEACHERS_RUN = (f"{ORACLE}::test_a_teachers_run_is_the_loop_written_by_hand",)
STUDENTS_RUN = (f"{ORACLE}::test_a_students_run_is_the_loop_written_by_hand",)
ACCUMULATED = (f"{RANKS}::test_accumulation_and_checkpointing_in_one_process",)
UPDATE = "        self._update(clipping_divisor(grad_norm, run.optimizer.clip), ~torch.isfinite(grad_norm))\n"
AVERAGE = "        state.ema.update(state.images, run.batch_size)\n"

MUTANTS = (
    # one step
    Mutant(
        "training/trainer.py",
        "        state.images += run.batch_size\n        state.steps += 1\n"
        "        for group in state.optimizer.param_groups:\n"
        '            group["lr"] = run.optimizer.learning_rate(state.images, run.images)\n',
        "        for group in state.optimizer.param_groups:\n"
        '            group["lr"] = run.optimizer.learning_rate(state.images, run.images)\n'
        "        state.images += run.batch_size\n        state.steps += 1\n",
        TEACHERS_RUN,
    ),
    Mutant(
        "training/trainer.py",
        UPDATE + AVERAGE,
        AVERAGE + UPDATE,
        TEACHERS_RUN,
    ),
    Mutant(
        "training/trainer.py",
        "(_poisoned(loss.total) / count).backward()",
        "_poisoned(loss.total).backward()",
        TEACHERS_RUN,
    ),
    Mutant(
        "training/trainer.py",
        "start,\n                stream.batch_size",
        "stream.starts[0],\n                stream.batch_size",
        ACCUMULATED,
    ),
    Mutant("training/trainer.py", "(_poisoned(loss.total) / count)", "(loss.total / count)", TEACHERS_RUN),
    Mutant("training/trainer.py", "found_inf = skip.float()", "found_inf = torch.zeros_like(skip.float())", SKIPPED),
    Mutant(
        "training/trainer.py",
        "objective = self.objective.at(images)",
        "objective = self.objective.at(0)",
        ("tests/objectives/test_scm.py::test_training_tells_the_objective_the_clock",),
    ),
    Mutant(
        "distributed/gradients.py",
        "((norm + 1e-6) / bound).clamp(min=1.0)",
        "((norm + 1e-6) / float('inf')).clamp(min=1.0)",
        TEACHERS_RUN,
    ),
    Mutant(
        "training/trainer.py",
        "state.ema.update(state.images, run.batch_size)",
        "state.ema.update(state.images - run.batch_size, run.batch_size)",
        TEACHERS_RUN,
    ),
    Mutant(
        "training/trainer.py",
        "total = total + loss.total.detach() / count",
        "total = total + loss.total.detach()",
        TEACHERS_RUN,
    ),
    Mutant("training/trainer.py", "values[0] if len(values) == 1 else torch.cat(values)", "values[0]", TEACHERS_RUN),
    # the optimiser
    Mutant("runs/optim.py", "betas=self.betas", "betas=self.betas[::-1]", TEACHERS_RUN),
    Mutant("runs/optim.py", "weight_decay=self.weight_decay", "weight_decay=0.0", TEACHERS_RUN),
    Mutant("runs/optim.py", "eps=self.eps", "eps=1e-8", TEACHERS_RUN),
    Mutant("runs/optim.py", "self.decay(images_seen / images)", "1.0", TEACHERS_RUN),
    # the log
    Mutant(
        "training/trainer.py",
        '{"images": state.images, **numbers',
        '{"images": state.images - self.run.batch_size, **numbers',
        TEACHERS_RUN,
    ),
    Mutant("training/trainer.py", "        state.window = Window()\n", "", TEACHERS_RUN),
    Mutant(
        "training/trainer.py",
        "(images - self.run.batch_size) // every",
        "(images - 1) // every",
        TEACHERS_RUN,
    ),
    Mutant(
        "training/trainer.py",
        "        state.window.add(loss, grad_norm)\n",
        "        if state.steps > 1:\n            state.window.add(loss, grad_norm)\n",
        TEACHERS_RUN,
    ),
    Mutant(
        "training/window.py",
        "value.mean() for name, value in loss.terms",
        "value.sum() for name, value in loss.terms",
        STUDENTS_RUN,
    ),
    # what it would take
    Mutant(
        "training/memory_plan/predict.py",
        'teacher=_of_teacher(teacher, kind) // (shards if kind == "fsdp" else 1)',
        "teacher=0",
        ("tests/training/memory_plan/test_predict.py::test_shards_and_copies",),
    ),
    # what is resumed
    Mutant(
        "training/state.py",
        "        self.window = Window.of(_of_this_rank(saved",
        "        Window(_of_this_rank(saved",
        CRASH,
    ),
    Mutant("training/state.py", "        set_global_random_state(saved.part", "        (saved.part", CRASH),
    Mutant(
        "training/state.py",
        '        self.skips.in_a_row.fill_(int(saved.meta["skipped_in_a_row"]))\n',
        "",
        (f"{TRAINER}::test_the_count_in_a_row_survives_a_resume",),
    ),
    Mutant(
        "training/state.py",
        '(before or {}).get("sha256") != (teacher or {}).get("sha256")',
        "False",
        (f"{STATE}::test_another_teacher_is_refused_halfway",),
    ),
    # the teacher
    Mutant(
        "training/build.py",
        "config.load().eval().requires_grad_(False)\n        return teacher",
        "config.load().train().requires_grad_(False)\n        return teacher",
        STUDENTS_RUN,
    ),
    Mutant("training/build.py", "spread(network.train(),", "spread(network.eval(),", TEACHERS_RUN),
    Mutant(
        "training/build.py",
        "return teacher, digest(teacher.state_dict())",
        'return teacher, ""',
        (f"{STATE}::test_a_teacher_is_recorded_by_its_weights",),
    ),
)
