"""The log, line by line."""

from facm.runs import log as logs


def test_a_log_line_cut_short_is_left_out_and_stays_alone(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"images": 1}\n{"ima')
    assert logs.read(log) == [{"images": 1}]
    logs.append(log, {"images": 2})
    assert logs.read(log) == [{"images": 1}, {"images": 2}]
    logs.rewind(log, 1)
    assert log.read_text() == '{"images": 1}\n'
