"""Mutants of what samples are measured with."""

from tests.mutants import Mutant

METRICS = "tests/evaluation/test_metrics.py"

CLIPS = "tests/evaluation/test_clips.py"

SEARCH = "tests/evaluation/test_schedule_search.py"

MUTANTS = (
    Mutant(
        "evaluation/schedule_search.py",
        "return derive(seed, _SEARCH, stage)",
        "return seed",
        (f"{SEARCH}::test_no_seed_that_an_evaluation_is_given_draws_the_noise_of_a_search",),
    ),
    Mutant(
        "evaluation/schedule_search.py",
        "(*list(by_moves.values())[:CONFIRMED], *defaults)",
        "(*list(by_moves.values())[:CONFIRMED],)",
        (f"{SEARCH}::test_it_is_never_worse_than_no_search_and_costs_no_more_than_it_says",),
    ),
    Mutant(
        "evaluation/schedule_search.py",
        "if all(ours < theirs",
        "if any(ours < theirs",
        (f"{SEARCH}::test_only_what_is_nearer_in_every_draw_replaces_what_needs_no_search",),
    ),
    Mutant(
        "evaluation/schedule_search.py",
        "for sign in (1, -1):",
        "for sign in (1,):",
        (f"{SEARCH}::test_the_compass_finds_the_bottom_of_a_bowl_within_its_trials",),
    ),
    Mutant(
        "evaluation/schedule_search.py",
        "            if tried == trials:\n                    return best, least\n",
        "",
        (f"{SEARCH}::test_the_compass_finds_the_bottom_of_a_bowl_within_its_trials",),
    ),
    Mutant(
        "evaluation/features.py",
        "return features_of(extractor, as_stored(x))",
        "return features_of(extractor, x)",
        (f"{METRICS}::test_generated_images_are_quantised_and_toys_are_not",),
    ),
    Mutant(
        "evaluation/frechet.py",
        "return max(float(distance), 0.0)",
        "return float(distance)",
        ("tests/evaluation/test_frechet.py::test_rounding_makes_no_distance_negative",),
    ),
    Mutant(
        "evaluation/metrics.py",
        "n >= SPLITS",
        "n > SPLITS",
        (f"{METRICS}::test_the_inception_score_needs_a_sample_for_each_of_its_ten_parts",),
    ),
    Mutant(
        "evaluation/evaluate.py",
        "labels.repeat_interleave(frames)",
        "labels.repeat(frames)",
        (f"{CLIPS}::test_frames_have_the_label_of_their_clip",),
    ),
    Mutant(
        "evaluation/evaluate.py",
        "n = sampling.n * (frames or 1)",
        "n = sampling.n",
        (f"{CLIPS}::test_frames_have_the_prompt_of_their_clip_and_decoded_ones_are_counted",),
    ),
    Mutant(
        "evaluation/evaluate.py",
        "as_images(x, frames)",
        "as_images(x[:, :, :frames])",
        (f"{CLIPS}::test_every_frame_is_a_sample_against_every_real_frame",),
    ),
    Mutant(
        "evaluation/evaluator.py",
        "Frames(dataset, frames_per_clip)",
        "Frames(dataset)",
        (f"{CLIPS}::test_every_frame_is_a_sample_against_every_real_frame",),
    ),
)
