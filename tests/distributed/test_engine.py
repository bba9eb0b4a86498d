"""The engine's options."""

import pytest

from facm.distributed.engine import Engine


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": "horovod"}, "engine.parallel = 'horovod', expected one of auto, ddp, fsdp"),
        ({"compile": "all"}, "engine.compile = 'all', expected one of no, blocks"),
        ({"accumulate": 0}, "engine.accumulate = 0, expected at least 1"),
        ({"timeout_s": 0}, "engine.timeout_s = 0, expected at least 1"),
        ({"replicas": 0, "parallel": "fsdp"}, "engine.replicas = 0, expected at least 1"),
        ({"replicas": 2}, "engine.replicas = 2 with engine.parallel = 'auto': expected 'fsdp'"),
        ({"cpu_offload": True, "parallel": "ddp"}, "engine.cpu_offload = True with engine.parallel = 'ddp'"),
        ({"find_unused": True, "parallel": "fsdp"}, "engine.find_unused = True"),
        ({"blocks": ("",)}, "engine.blocks"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Engine(**options)


@pytest.mark.parametrize(
    ("engine", "batch_size", "ranks", "message"),
    [
        (Engine(), 10, 4, r"batch_size = 10 over 4 ranks .*expected a multiple of 4 \* 1 = 4"),
        (Engine(accumulate=3), 16, 2, r"engine.accumulate = 3: expected a multiple of 2 \* 3 = 6"),
        (Engine(parallel="fsdp", replicas=3), 16, 4, "engine.replicas = 3 with 4 ranks: expected a divisor of 4"),
    ],
)
def test_numbers_that_do_not_divide_are_refused(engine, batch_size, ranks, message):
    with pytest.raises(ValueError, match=message):
        engine.check(batch_size, ranks)
