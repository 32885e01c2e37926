"""What a probe leaves for people: a page, a picture, the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .choose import Choice
from .linear import Probe
from .proposal import Proposal

_SHOWN = {"phones": "phones", "text": "letters", "speaker": "speaker", "label": "label"}


def write(proposal: Proposal, folder: Path) -> None:
    """Write ``targets.md``, ``targets.png`` and ``targets.json`` into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(proposal, folder / "targets.png")
    (folder / "targets.json").write_text(json.dumps(numbers(proposal), indent=1) + "\n", encoding="utf-8")
    (folder / "targets.md").write_text(page(proposal), encoding="utf-8")


def numbers(proposal: Proposal) -> dict[str, Any]:
    """Everything that was measured, as JSON holds it: what is no number is null."""

    def plain(values: np.ndarray) -> Any:
        if values.ndim > 1:
            return [plain(row) for row in values]
        return [round(float(value), 5) if np.isfinite(value) else None for value in values]

    def choice(one: Choice) -> dict[str, Any]:
        return {"layers": list(one.layers), "coverage": round(one.coverage, 5), "probes_met": one.met}

    return {
        "targets": list(proposal.chosen.layers),
        "chosen": choice(proposal.chosen),
        "next_best": [choice(one) for one in proposal.others],
        "recipe": choice(proposal.recipe) if proposal.recipe else None,
        "by_cka_alone": choice(proposal.by_cka),
        "chosen_on_each_part": [list(layers) for layers in proposal.on_parts],
        "teacher": proposal.teacher,
        "setting": dict(proposal.setting),
        "cka": plain(proposal.cka),
        "cka_standard_error": plain(proposal.cka_error),
        "probes": [
            {
                "name": one.name,
                "measure": one.what,
                "utterances": one.utterances,
                "scores": plain(one.scores),
                "standard_errors": plain(one.errors),
                "baseline": round(one.baseline, 5),
                "best": one.best,
                "as_good_as_best": sorted(one.near),
                "counts": one.informative,
            }
            for one in proposal.probes
        ],
        "left_out": list(proposal.left_out),
        "remarks": list(proposal.remarks),
    }


def page(proposal: Proposal) -> str:
    """The page, in Markdown."""
    chosen, count = proposal.chosen, len(proposal.chosen.layers)
    lines = [
        f"# Targets: layers {_list(chosen.layers)} of {proposal.teacher}",
        "",
        *(f"- {name}: {text}" for name, text in proposal.setting.items()),
        *(f"- Passed over: {text}" for text in proposal.remarks),
        "",
        "![CKA between layers, and probes by layer](targets.png)",
        "",
        "## Why these",
        "",
        f"Of all sets of {count} layers that hold what each probe found, the one that stands best for layers 1 to "
        f"{len(proposal.cka) - 1}: the mean, over these, of the CKA with the most similar chosen layer is its "
        "coverage. A probe is held where a chosen layer's score is within one standard error of the best layer's (of "
        "the difference, utterance by utterance). Layer 0, the input of the first layer, is neither chosen nor "
        "counted: a student has its own, which starts from the teacher's. The last layer has no privilege: in wav2vec "
        "2.0 it turns back to the input (Pasad et al. 2021, arXiv 2107.04734).",
        "",
        "| set | layers | coverage | probes held |",
        "|---|---|---|---|",
        _row("**chosen**", chosen, proposal),
        *(_row(f"next best {place}", one, proposal) for place, one in enumerate(proposal.others, 1)),
        _row("by CKA alone", proposal.by_cka, proposal),
        *([_row("the recipe's", proposal.recipe, proposal)] if proposal.recipe else []),
        "",
        *_reliance(proposal),
        "## Probes",
        "",
        *_probes(proposal),
        *(f"- Left out: {reason}." for reason in proposal.left_out),
        "",
        *_cka(proposal),
        "",
        "This is a heuristic: it says which layers differ and what they hold, not which targets train the best "
        "student. DistilHuBERT (Chang et al. 2022, arXiv 2110.01900) took 4, 8 and 12 of HuBERT base by hand. Numbers: "
        "`targets.json`.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, choice: Choice, proposal: Proposal) -> str:
    held = f"{choice.met} of {proposal.counted}" if proposal.counted else "none to hold"
    return f"| {name} | {_list(choice.layers)} | {choice.coverage:.4f} | {held} |"


def _reliance(proposal: Proposal) -> list[str]:
    lines: list[str] = []
    if proposal.chosen.met < proposal.counted:
        lines += [f"No {len(proposal.chosen.layers)} layers hold all probes: the most that any do are held.", ""]
    if len(proposal.on_parts) > 1:
        same = sum(layers == proposal.chosen.layers for layers in proposal.on_parts)
        parts = "; ".join(_list(layers) for layers in proposal.on_parts)
        lines += [
            f"On each of {len(proposal.on_parts)} parts of the speech by itself (CKA anew, probes as they are) the "
            f"rule takes {parts}: {same} of {len(proposal.on_parts)} as chosen.",
            "",
        ]
    return lines


def _probes(proposal: Proposal) -> list[str]:
    if not proposal.probes:
        return ["None: what is proposed rests on CKA alone.", ""]
    probes = proposal.probes
    rows = [
        "Ridge regression on the mean of an utterance's frames, on utterances held out (5 folds); ± one standard "
        "error. Bold: within one standard error of the best of layers 1 and up. Times of phones are not known, so what "
        "is asked of a layer is which share of the utterance each phone or letter has. The same speakers, sessions and "
        "words may be on both sides of a fold.",
        "",
        "| layer | " + " | ".join(_SHOWN[one.name] for one in probes) + " |",
        "|---" * (len(probes) + 1) + "|",
    ]
    for layer in range(len(proposal.cka)):
        mark = " (chosen)" if layer in proposal.chosen.layers else ""
        rows.append(f"| {layer}{mark} | " + " | ".join(_score(one, layer) for one in probes) + " |")
    rows += ["| nothing known | " + " | ".join(f"{one.baseline:.3f}" for one in probes) + " |", ""]
    for one in probes:
        told = (
            f"best in layer {one.best}"
            if one.informative
            else ("no layer is above chance by two standard errors, so it does not count in the choice")
        )
        rows.append(f"- {_SHOWN[one.name]} ({one.what}; {one.utterances} utterances): {told}.")
    return rows


def _score(probe: Probe, layer: int) -> str:
    text = f"{probe.scores[layer]:.3f} ± {probe.errors[layer]:.3f}"
    return f"**{text}**" if layer in probe.near and probe.informative else text


def _cka(proposal: Proposal) -> list[str]:
    chosen = proposal.chosen.layers
    rows = ["## CKA with the chosen layers", "", "| layer | " + " | ".join(map(str, chosen)) + " |"]
    rows.append("|---" * (len(chosen) + 1) + "|")
    for layer, line in enumerate(proposal.cka):
        cells = ("-" if np.isnan(line[other]) else f"{line[other]:.3f}" for other in chosen)
        rows.append(f"| {layer} | " + " | ".join(cells) + " |")
    worst = np.nanmax(proposal.cka_error) if np.isfinite(proposal.cka_error).any() else None
    if worst is not None:
        rows += ["", f"Standard error over parts of the speech: {worst:.3f} at the most."]
    return rows


def _list(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))


def draw(proposal: Proposal, path: Path) -> Path:
    """A heat map of CKA and a line of scores for each probe, all with the chosen layers marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, chosen, names = len(proposal.cka), proposal.chosen.layers, [one.name for one in proposal.probes]
    side = max(4.6, 0.28 * count + 1.4, 1.7 * len(names))
    figure = Figure(figsize=(2.3 * side if names else 1.3 * side, side), layout="constrained")
    FigureCanvasAgg(figure)
    # Each probe has an axis of its own: what differs from layer to layer is small beside what differs between probes.
    panels = figure.subplot_mosaic([["cka", name] for name in names] or [["cka"]])
    axes = panels["cka"]
    image = axes.imshow(proposal.cka, cmap="Blues", origin="lower", vmax=1)
    for layer in chosen:
        for span in (axes.axhspan, axes.axvspan):
            span(layer - 0.5, layer + 0.5, fill=False, edgecolor="C3", linewidth=1)
    axes.set(title="linear CKA between layers (debiased)", ylabel="layer")
    figure.colorbar(image, ax=axes, shrink=0.8)
    for number, one in enumerate(proposal.probes):
        _draw_probe(proposal, one, f"C{(0, 2, 4, 1)[number]}", panels[one.name])
    if names:
        panels[names[0]].set_title("linear probes, held out; circled: as good as the best layer", fontsize="medium")
    for place in panels.values():
        place.set_xticks(range(count))
        if place is axes:
            place.set_yticks(range(count))
        for label in (*place.get_xticklabels(), *(place.get_yticklabels() if place is axes else ())):
            label.set_fontsize(8 if count <= 26 else 6)
            if int(label.get_text()) in chosen:
                label.set(color="C3", fontweight="bold")
    for name in {"cka", *names[-1:]}:
        panels[name].set_xlabel(f"layer (0: the first layer's input; red: {_list(chosen)}, chosen)")
    figure.savefig(path, dpi=120)
    return path


def _draw_probe(proposal: Proposal, probe: Probe, colour: str, axes: Any) -> None:
    chance = f"nothing known: {probe.baseline:.2f}" if probe.informative else "not above chance, not counted"
    label = f"{probe.what} ({chance})"
    axes.errorbar(
        range(len(probe.scores)), probe.scores, probe.errors, color=colour, marker=".", capsize=2, label=label
    )
    for layer in proposal.chosen.layers:
        axes.axvline(layer, color="C3", linewidth=1, alpha=0.6)
    if probe.informative:
        good = sorted(probe.near)
        axes.plot(good, probe.scores[good], "o", color="none", markeredgecolor=colour, markersize=9)
    axes.set_ylabel(_SHOWN[probe.name])
    axes.margins(y=0.35)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="lower right")
