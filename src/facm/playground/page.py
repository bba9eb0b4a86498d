"""The page: controls on the left, student and teacher from the same noise on the right. Needs gradio."""

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from facm.playground.draw import Desk, Drawn
from facm.playground.request import (
    MOST_IMAGES,
    MOST_PROMPT,
    MOST_SEED,
    MOST_STEPS,
    MOST_TEACHER_STEPS,
    SAMPLERS,
    Request,
    whole,
)

QUEUE = 16
"""Requests that wait; more are turned away."""
ALL = "all in turn"
KEPT = 200
"""Pictures that stay to be downloaded."""


def page(desk: Desk, title: str) -> Any:
    """The page as gradio's Blocks, not yet served."""
    import gradio as gr

    files = _Files()
    with gr.Blocks(title=f"facm: {title}", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {_plain(title)}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                prompt = gr.Textbox(label="Prompt", visible=desk.takes_prompts, max_length=MOST_PROMPT)
                label = gr.Dropdown(
                    [ALL, *map(str, range(desk.classes))], value=ALL, label="Class", visible=desk.classes > 0
                )
                steps = gr.Slider(1, MOST_STEPS, value=1, step=1, label="Steps")
                sampler = gr.Dropdown(list(SAMPLERS), value="auto", label="Sampler")
                images = gr.Slider(1, MOST_IMAGES, value=8, step=1, label="Samples")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MOST_SEED)
                mix = gr.Slider(0, 1, value=0, label="Turn towards the noise of another seed")
                other = gr.Number(1, label="The other seed", precision=0, minimum=0, maximum=MOST_SEED)
                beside = gr.Slider(
                    0,
                    MOST_TEACHER_STEPS,
                    value=32 if desk.has_teacher else 0,
                    step=1,
                    label="Steps of the teacher beside it",
                    visible=desk.has_teacher,
                )
                go = gr.Button("Draw", variant="primary", elem_id="draw")
                sheet = gr.Button("Contact sheet: 1, 2, 4 and 8 steps", elem_id="sheet")
                between = gr.Button("From this seed to the other", elem_id="between")
            with gr.Column(scale=2):
                picture = {"type": "filepath", "format": "png", "interactive": False, "show_label": False}
                picture |= {"buttons": ["download", "fullscreen"]}
                gr.Markdown("**Student**" if desk.has_teacher else "**Samples**")
                student = gr.Image(elem_id="student", **picture)
                told = gr.Markdown(elem_id="told")
                save = gr.DownloadButton("Download with its settings", visible=False)
                gr.Markdown("**Teacher**, the same noise", visible=desk.has_teacher)
                teacher = gr.Image(visible=desk.has_teacher, elem_id="teacher", **picture)
                told_teacher = gr.Markdown(elem_id="told-teacher")
        form = [prompt, label, steps, sampler, images, seed, mix, other, beside]

        def asked(*values: Any) -> Request:
            words, which, count_steps, kind, count, start, share, end, with_teacher = values
            return Request(
                images=whole(count, "images"),
                seed=whole(start, "seed"),
                steps=whole(count_steps, "steps"),
                sampler=kind,
                teacher_steps=whole(with_teacher, "teacher_steps"),
                label=None if which in (None, ALL) else whole(which, "label"),
                prompt=words or "",
                other_seed=whole(end, "other_seed"),
                mix=share,
            )

        def shown(drawn: Drawn) -> tuple[str, str, Any]:
            path = files.write(drawn)
            return path, _told(drawn), gr.DownloadButton(value=path, visible=True)

        def draw(*values: Any) -> tuple[Any, ...]:
            request = _refused_nicely(lambda: asked(*values))
            first = _refused_nicely(lambda: desk.draw(request))
            if not request.teacher_steps:
                return (*shown(first), None, "")
            second = _refused_nicely(lambda: desk.draw_teacher(request))
            return (*shown(first), files.write(second), _told(second))

        def all_steps(*values: Any) -> tuple[Any, ...]:
            request = _refused_nicely(lambda: replace(asked(*values), teacher_steps=0))
            return (*shown(_refused_nicely(lambda: desk.sheet(request))), None, "")

        def turning(*values: Any) -> tuple[Any, ...]:
            request = _refused_nicely(lambda: replace(asked(*values), teacher_steps=0))
            return (*shown(_refused_nicely(lambda: desk.between(request))), None, "")

        out = [student, told, save, teacher, told_teacher]
        for button, does, name in ((go, draw, "draw"), (sheet, all_steps, "sheet"), (between, turning, "between")):
            button.click(does, form, out, concurrency_limit=1, concurrency_id="network", api_name=name)
    blocks.queue(max_size=QUEUE)
    return blocks


class _Files:
    """Pictures in a folder of their own; the oldest go, so that a page left open does not fill the disk."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="facm-play-")
        self._numbers = itertools.count()

    def write(self, drawn: Drawn) -> str:
        number = next(self._numbers)
        folder = Path(self._folder.name)
        (folder / f"facm-{number - KEPT:06d}.png").unlink(missing_ok=True)
        path = folder / f"facm-{number:06d}.png"
        path.write_bytes(drawn.png)
        return str(path)


def _told(drawn: Drawn) -> str:
    rows = drawn.settings.get("rows")
    what = (
        f"rows of {', '.join(map(str, rows))} steps"
        if rows
        else f"{drawn.evaluations} evaluation{'s' * (drawn.evaluations != 1)} a sample"
    )
    return f"{drawn.milliseconds:.0f} ms, {what}"


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return "".join(f"&#{ord(c)};" if not c.isalnum() and c not in " /.-_" else c for c in text)


def _refused_nicely(made: Callable[[], Any]) -> Any:
    """What is refused comes as a message on the page, whose text is not read as HTML."""
    import gradio as gr

    try:
        return made()
    except (ValueError, OSError) as error:
        raise gr.Error(_plain(str(error)), print_exception=False) from error


def picture_settings(png: bytes) -> str:
    """The settings in a downloaded picture, as JSON; empty where there are none."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return str(image.info.get("facm", ""))
