"""The web page. It asks no other host for anything, and browsers are told to refuse if it tried."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from s3prl_distiller.settings import QUICKSTART

from . import render
from .listen import Listener

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORTS = range(7860, 7880)
_EXAMPLES = {"English": "en_f1_s00", "Português": "pt-br_f1_s00", "Español": "es_m5_s00"}
_POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; form-action 'self'"
_CSS = """
.picture { overflow-x: auto; } .picture svg { width: 100%; height: auto; min-width: 34rem; display: block; }
.refusal { border-left: 4px solid #d4544a; padding: .6rem .9rem; background: rgba(212, 84, 74, .12); }
.said { border-left: 4px solid #4c8bd6; padding: .3rem .9rem; margin: .6rem 0; background: rgba(76, 139, 214, .1); }
.said .words { font-size: 1.15rem; white-space: pre-wrap; overflow-wrap: anywhere; } .said small { opacity: .75; }
.answer .figures { overflow-x: auto; } .answer .figures table { width: auto; border: 0; }
.answer .figures tr { border: 0; }
.answer .figures :is(td, th) {
  padding: .25rem 1.2rem .25rem 0; text-align: left; white-space: nowrap; border: 0;
  border-bottom: 1px solid rgba(128, 128, 128, .35);
}
@media (max-width: 600px) { .answer .figures :is(td, th) { padding-right: .6rem; } }
.answer h2 { margin: 1rem 0 .4rem; font-size: 1.15rem; font-weight: 600; }
.answer p { margin: .4rem 0; }
"""


def check_gradio() -> None:
    """Raises ValueError where it is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('the demo needs gradio: pip install "s3prl-distiller[demo]"')


def free_port(host: str, port: int | None) -> int:
    """The port that is asked for, or by default the first free one of :data:`PORTS`.

    Raises:
        ValueError: it is in use, or ``host`` is no address of this machine.
    """
    reason = ""
    for number in PORTS if port is None else [port]:
        try:
            with socket.create_server((host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
                return number
        except (OSError, OverflowError) as error:
            reason = str(error)
    asked = f"port {port}" if port is not None else f"ports {PORTS[0]} to {PORTS[-1]}"
    raise ValueError(f"the page cannot be served on {host}, {asked} ({reason}): choose others with --host and --port")


@contextmanager
def serving(listener: Listener, host: str, port: int) -> Iterator[str]:
    """Serve the page while the block runs, which is given its address. What was recorded is deleted at its end."""
    with TemporaryDirectory(prefix="s3prl-distiller-demo-") as folder:
        # Before it is imported: it is to report nothing to its makers, and to keep uploads here.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_TEMP_DIR=folder)
        import gradio as gr
        from starlette.middleware import Middleware

        page = _build(gr, listener, host in LOOPBACK)
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            app_kwargs={"middleware": [Middleware(_OwnHostOnly)]},
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=_CSS,
        )
        try:
            yield address
        finally:
            page.close(verbose=False)


def _build(gr: Any, listener: Listener, local: bool) -> Any:
    # Clips from several pages are heard one after the other, so that times are those of a model that runs alone.
    ear = threading.Lock()

    def listen(path: str | None) -> tuple[str, str, str, str]:
        """What student, teacher and heads make of a clip: what heads say, the clip, layers, cost; pieces of HTML."""
        if path is None:
            return render.refusal("Record something or drop a file first."), "", "", ""
        with ear:
            try:
                heard = listener.listen(Path(path))
            except ValueError as error:
                return render.refusal(str(error)), "", "", ""
            return render.answer(heard), render.clip(heard), render.layers(heard), render.cost(heard)

    with gr.Blocks(title="s3prl-distiller demo", analytics_enabled=False) as page:
        gr.HTML(render.header(listener, local), padding=True)
        with gr.Row():
            # No buttons: one of them would share the clip on another host.
            plain: Any = {"type": "filepath", "editable": False, "buttons": [], "min_width": 300}
            spoken = gr.Audio(sources=["microphone"], label="Speak", **plain)
            file = gr.Audio(sources=["upload"], label="Or drop a file", **plain)
        examples = gr.Row()
        pieces = [gr.HTML(elem_classes="answer", padding=True) for _ in range(4)]
        file.upload(listen, file, pieces, api_name="listen")
        spoken.stop_recording(listen, spoken, pieces, api_visibility="private")
        gr.on([spoken.clear, file.clear], lambda: ("",) * 4, None, pieces, api_visibility="private")
        with examples:
            gr.Examples(
                [[str(QUICKSTART / "corpus" / "audio" / f"{name}.opus")] for name in _EXAMPLES.values()],
                file,
                pieces,
                listen,
                run_on_click=True,
                label="Or synthetic speech that comes with the package",
                example_labels=list(_EXAMPLES),
                api_visibility="private",
            )
    return page


class _OwnHostOnly:
    """Tells browsers to ask no other host for anything, whatever the page's libraries would like."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        await self.app(scope, receive, send_with_policy)
