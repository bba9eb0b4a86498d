"""The page as it is served: what it draws, and what it refuses."""

import json
import socket
from pathlib import Path

import pytest

pytest.importorskip("gradio")

import gradio_client

from facm.cli import main
from facm.playground.page import KEPT, _Files, _plain, page, picture_settings
from facm.playground.request import Request
from tests.playground.test_draw import desk  # noqa: F401

pytestmark = pytest.mark.slow
FORM = ["", "all in turn", 2, "auto", 4, 7, 0.0, 1, 3]
"""prompt, class, steps, sampler, samples, seed, mix, the other seed, steps of the teacher"""


@pytest.fixture(scope="module")
def client(desk):  # noqa: F811
    blocks = page(desk, "<b>mine</b>")
    _, address, _ = blocks.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield gradio_client.Client(address, verbose=False)
    blocks.close()


def test_student_and_teacher_are_drawn_with_their_settings(client):
    student, told, _, teacher, told_teacher = client.predict(*FORM, api_name="/draw")
    assert told.endswith("ms, 2 evaluations a sample")
    assert told_teacher.endswith("ms, 3 evaluations a sample")
    paths = [item["path"] if isinstance(item, dict) else item for item in (student, teacher)]
    said = [json.loads(picture_settings(Path(path).read_bytes())) for path in paths]
    assert [row["who"] for row in said] == ["student", "teacher"]
    assert {row["seed"] for row in said} == {7}


def test_sheet_and_interpolation(client):
    assert client.predict(*FORM, api_name="/sheet")[1].endswith("ms, rows of 1, 2, 4, 8 steps")
    assert client.predict(*FORM, api_name="/between")[1].endswith("ms, 2 evaluations a sample")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (4, 10**9, "greater than maximum value 16"),
        (5, -1, "less than minimum value 0"),
        (5, "7; rm -rf", "raised an exception"),
        (2, 1e30, "greater than maximum value 8"),
        (0, "x" * 2**20, "prompt"),
        (0, "<script>alert(1)</script>", "prompts"),
        (3, "../../etc", "not in the list of choices"),
        (8, 10**6, "greater than maximum value 100"),
    ],
)
def test_what_is_out_of_bounds_draws_nothing(client, place, value, message):
    with pytest.raises(Exception, match=message):  # gradio_client has one class for all
        client.predict(*FORM[:place], value, *FORM[place + 1 :], api_name="/draw")


def test_html_is_shown_as_text():
    assert "<" not in _plain("<img src=x onerror=alert(1)>")


def test_old_pictures_go(desk):  # noqa: F811
    files, drawn = _Files(), desk.draw(Request(images=1))
    paths = [files.write(drawn) for _ in range(KEPT + 1)]
    assert not Path(paths[0]).exists()
    assert Path(paths[1]).exists()


def test_a_port_in_use_is_named(desk, capsys):  # noqa: F811
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            main(["play", str(desk.model.path), "--port", str(port)])
    assert f"--port {port} is in use, expected a free one, or 0 for any" in capsys.readouterr().err
