"""What was made of a clip, as pieces of HTML. Whatever a model or a file name says is escaped."""

from __future__ import annotations

from html import escape

from torch import Tensor

from ..pictures.clip import draw_cka, draw_clip
from .listen import Cost, Heard, Likeness, Listener, Said

_KINDS = {
    "asr": "transcript",
    "er": "emotion",
    "ic": "intent",
    "ks": "keyword",
    "pr": "phonemes",
    "sd": "who speaks when",
    "sf": "transcript and slots",
    "sid": "speaker",
}
_NO_TEACHER = "No teacher was given, so there is nothing to compare the student with: start the demo with --teacher."


def header(listener: Listener, local: bool) -> str:
    """What listens, and where what is said goes to.

    Args:
        local: the page is served to this machine only.
    """
    teacher = "no teacher" if listener.teacher is None else f"teacher <b>{_short(listener.teacher.info.name)}</b>"
    heads = ", ".join(escape(head.expert.task.name) for head in listener.heads) or "none"
    place = "this machine" if local else "the machine that this page comes from"
    return (
        f"<h1>What a student hears</h1><p>Student <b>{escape(listener.name)}</b>, {teacher}, trained heads: {heads}; "
        f"on {escape(str(listener.device))}. Recordings do not leave {place}, where they are deleted when the demo "
        "ends.</p>"
    )


def refusal(message: str) -> str:
    """Why a clip was not heard."""
    return f'<div class="refusal" role="alert">{escape(message)}</div>'


def answer(heard: Heard) -> str:
    """What each head says of the clip, and how much of it was heard."""
    if heard.recorded - heard.seconds > 0.05:
        length = f"Only the first {heard.seconds:.1f} s of {heard.recorded:.1f} s were heard (--seconds)."
    else:
        length = f"All {heard.seconds:.1f} s were heard."
    said = "".join(map(_said, heard.said)) or "<p>No head was given: train one and start the demo with -e RUN.</p>"
    return f"<h2>What trained heads say</h2><p>{length}</p>{said}"


def clip(heard: Heard) -> str:
    """Waveform, spectrogram and cosines over time, with the mean cosine of each prediction."""
    named = _cosines(heard.likeness)
    picture = draw_clip(heard.wave, named, heard.likeness.frame if heard.likeness else 0.0)
    if not named:
        return f"<h2>The clip</h2>{_picture(picture, 'waveform and log-mel spectrogram over time')}"
    means = "".join(
        f"<tr><td>{name}</td><td>{float(values.mean()):.3f}</td><td>{float(values.min()):.3f} at "
        f"{(int(values.argmin()) + 0.5) * heard.likeness.frame:.2f} s</td></tr>"
        for name, values in named.items()
        if heard.likeness is not None
    )
    return (
        "<h2>How close predictions come, over time</h2>"
        + _picture(picture, "waveform, log-mel spectrogram and cosine similarities over time")
        + "<p>Cosine of what the student predicts with what the teacher's layer says, for each frame: 1 is the same "
        "direction, 0 none in common.</p>" + _table(("", "mean cosine", "lowest"), means)
    )


def layers(heard: Heard) -> str:
    """CKA of the student's states with the teacher's layers, and how to read it."""
    likeness = heard.likeness
    if likeness is None:
        return f"<h2>Layers of student and teacher</h2><p>{_NO_TEACHER}</p>"
    words = (
        "Linear CKA over the frames of this clip. A row is a state of the student, a column a layer of the teacher. "
        "1: frames that are alike in one are alike in the other, up to rotation and scale. 0: the two have nothing to "
        "do with each other. Layers beside each other are alike anyway, so look for the highest of a row (bold)."
    )
    if likeness.targets:
        words += " Framed: the layer that a prediction was trained on."
    elif any(row.startswith("prediction") for row in likeness.rows):
        words += " This teacher cannot be the one that was distilled: its layers differ in width or number."
    picture = draw_cka(likeness.cka, likeness.rows, likeness.targets)
    return f"<h2>Layers of student and teacher</h2>{_picture(picture, 'heat map of linear CKA')}<p>{words}</p>"


def cost(heard: Heard) -> str:
    """What student and teacher took for the clip."""
    models = {"student": heard.student} | ({"teacher": heard.teacher} if heard.teacher else {})
    rows = "".join(_cost(kind, model, heard.seconds) for kind, model in models.items())
    said = ""
    if heard.teacher is not None:
        ratio = heard.teacher.seconds / heard.student.seconds
        said = f"The student, predictions included, was {ratio:.1f} times as fast as the teacher. "
    return (
        f"<h2>Time for {heard.seconds:.1f} s</h2>"
        + _table(("", "parameters", "time", "time / length"), rows)
        + f"<p>{said}Below 1, time over length (the real-time factor) keeps up with speech. One pass, no heads.</p>"
    )


def _said(said: Said) -> str:
    kind = _KINDS.get(said.task, said.task)
    words = f"<em>{escape(said.words)}</em>" if said.refused else escape(said.words) or "<em>(nothing)</em>"
    return (
        f'<div class="said"><div class="words">{words}</div>'
        f"<small>{escape(kind)}: {escape(said.task)}, run {escape(said.run)}, on {escape(said.upstream)}</small></div>"
    )


def _cost(kind: str, model: Cost, seconds: float) -> str:
    return (
        f"<tr><td>{kind}</td><td>{model.parameters / 1e6:.1f} M</td>"
        f"<td>{1000 * model.seconds:.0f} ms</td><td>{model.seconds / seconds:.3f}</td></tr>"
    )


def _cosines(likeness: Likeness | None) -> dict[str, Tensor]:
    if likeness is None:
        return {}
    return {f"layer {layer}": values for layer, values in zip(likeness.targets.values(), likeness.cosines, strict=True)}


def _picture(svg: str, words: str) -> str:
    return f'<div class="picture" role="img" aria-label="{words}">{svg}</div>'


def _table(heads: tuple[str, ...], rows: str) -> str:
    return f'<div class="figures"><table><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr>{rows}</table></div>'


def _short(name: str) -> str:
    return escape(name.rstrip("/").rpartition("/")[2])
