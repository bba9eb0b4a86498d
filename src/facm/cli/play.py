"""facm play: a page on this machine."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Annotated

import tyro

from facm.core.terminal import say


def play(
    network: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|FILE")],
    port: int = 7860,
    device: str = "auto",
    ema: float | None = None,
    trust_recipe: bool = False,
    high_noise: Path | None = None,
) -> None:
    """Try a trained network by hand, on a page of this machine: student beside teacher, seeds, steps, samplers.

    Args:
        network: a run's folder, or a checkpoint file.
        port: of the page, on this machine only; 0 takes one that is free.
        device: where it computes, auto, cpu or cuda.
        ema: EMA length sigma_rel; default: the run's first.
        trust_recipe: execute the recipe file that came with the run, from now on, whoever wrote it.
        high_noise: where RUN is the low-noise half of a pair, the run of the other.
    """
    port = _free(port)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError("facm play needs gradio, which is not installed: pip install 'facm[play]'") from error
    import facm
    from facm.playground.draw import Desk
    from facm.playground.page import page

    model = facm.load(network, ema=ema, device=device, trust_recipe=trust_recipe, high_noise=high_noise)
    blocks = page(Desk(model), str(network))
    say(f"http://127.0.0.1:{port}/ (Ctrl-C ends it)")
    blocks.launch(server_name="127.0.0.1", server_port=port, share=False, quiet=True, footer_links=[])


def _free(port: int) -> int:
    """``port``, or with 0 one that is free. Raises ValueError for one that is none, or that is in use."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}, expected 0 to 65535")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
            raise ValueError(f"--port {port} {why}, expected a free one, or 0 for any") from error
        return int(probe.getsockname()[1])
