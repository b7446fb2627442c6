"""What can be checked: the freeze table, the proof about text, times, the making, and what is not shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mm_llama.report.charts import share_bar
from mm_llama.report.inputs import Inputs
from mm_llama.report.markup import Markup, element
from mm_llama.report.results import duration, percent


def freeze(inputs: Inputs) -> Iterator[Markup]:
    """Yield, per stage, every tensor group with its digest before and after, and what was to happen to it."""
    yield element(
        "p",
        "Digests (SHA-256) of every group of tensors before and after training. A frozen group must keep "
        "its digest, a trained one must lose it; a stage that breaks this fails and saves nothing.",
        class_="intro",
    )
    for stage in inputs.stages:
        if not stage.freeze:
            continue
        header = [
            ("Tensors", ""),
            ("Parameters", "num"),
            ("Meant to be", ""),
            ("Before", ""),
            ("After", ""),
            ("Found", ""),
        ]
        yield _table(
            f"Stage {stage.name}",
            [element("th", name, scope="col", class_=style or None) for name, style in header],
            [_freeze_row(row) for row in stage.freeze],
        )
        whole = "\n".join(
            f"{row.get('group', '')}\n  before {row.get('before')}\n  after  {row.get('after')}"
            for row in stage.freeze
        )
        yield element(
            "details", element("summary", "Whole digests"), element("pre", element("code", whole), tabindex=0)
        )


def _freeze_row(row: Mapping[str, Any]) -> Markup:
    trained = bool(row.get("trained"))
    before, after = str(row.get("before") or ""), str(row.get("after") or "")
    known, changed = bool(before and after), before != after
    if not known:
        state = element("span", "not recorded", class_="state")
    elif changed == trained:
        state = element("span", "✓ changed, as meant" if changed else "✓ unchanged", class_="state good")
    else:
        state = element("span", "✕ CHANGED" if changed else "✕ did not change", class_="state bad")
    return element(
        "tr",
        element("th", element("code", row.get("group", "")), scope="row"),
        element("td", f"{int(row.get('num_parameters') or 0):,}", class_="num", data_label="Parameters"),
        element("td", "trained" if trained else "frozen", data_label="Meant to be"),
        element("td", digest(before), data_label="Before"),
        element("td", digest(after), data_label="After"),
        element("td", state, data_label="Found"),
    )


def proof(inputs: Inputs) -> Iterator[Markup]:
    """Yield the comparison of the plain text model with the one that carries adapters."""
    found = inputs.proof
    core = found.get("core") or {}
    yield element(
        "p",
        "The same text is given to the plain text model, loaded again from its file, and to the model with "
        "the adapter attached. Every logit is compared as stored, without any tolerance. In mixed batches, "
        "text rows stand beside rows with pictures.",
        class_="intro",
    )
    rows = []
    for case in found.get("cases") or []:
        equal = bool(case.get("equal"))
        rows.append(
            element(
                "tr",
                element("th", case.get("name", ""), scope="row"),
                element("td", f"{int(case.get('num_values') or 0):,}", class_="num", data_label="Logits"),
                element(
                    "td",
                    f"{float(case.get('max_delta') or 0.0):.3g}",
                    class_="num",
                    data_label="Largest difference",
                ),
                element(
                    "td",
                    element(
                        "span",
                        "✓ equal" if equal else "✕ DIFFERENT",
                        class_=f"state {'good' if equal else 'bad'}",
                    ),
                    data_label="Result",
                ),
            )
        )
    header = [
        element("th", "Compared", scope="col"),
        element("th", "Logits", scope="col", class_="num"),
        element("th", "Largest difference", scope="col", class_="num"),
        element("th", "Result", scope="col"),
    ]
    yield _table("Logits of text, with and without the adapter", header, rows)
    facts = [
        ("Checkpoint that the adapter was trained on", digest(str(core.get("recorded") or ""))),
        ("Checkpoint of the plain model", digest(str(core.get("checkpoint") or ""))),
        ("Weights in memory, plain model", digest(str(core.get("plain") or ""))),
        ("Weights in memory, with the adapter", digest(str(core.get("attached") or ""))),
        ("Computed in", str(found.get("dtype", "not recorded"))),
    ]
    if core.get("num_tensors_known_before_training"):
        changed = core.get("changed_since_training") or []
        said = f"{len(changed)} changed" if changed else "all as before training"
        facts.append(("Single tensors", f"{core['num_tensors_known_before_training']:,} compared, {said}"))
    yield element(
        "dl",
        *[element("div", element("dt", name), element("dd", value)) for name, value in facts],
        class_="facts",
        style="margin-top:18px",
    )
    control = found.get("control")
    if isinstance(control, dict):
        moved = float(control.get("max_delta") or 0.0)
        yield element(
            "p",
            "Control: in the same mixed batches, the positions that do see a picture moved by up to "
            f"{moved:.3g}. "
            + (
                "So the adapter was at work, and equality elsewhere says something."
                if moved
                else "The adapter had no effect at all."
            ),
            class_="note" if moved else "missing",
        )
    yield from _mmlu(found.get("mmlu"))


def _mmlu(found: Any) -> Iterator[Markup]:
    if not isinstance(found, dict):
        yield element(
            "p", "MMLU was not part of this proof (mm-llama proof --mmlu 570 adds it).", class_="note"
        )
        return
    rows = []
    for key, name in (("plain", "Plain text model"), ("attached", "With the adapter attached")):
        side = found.get(key) or {}
        rows.append(
            element(
                "tr",
                element("th", name, scope="row"),
                element(
                    "td", percent(float(side.get("accuracy") or 0.0)), class_="num", data_label="Accuracy"
                ),
                element("td", digest(str(side.get("digest") or "")), data_label="Digest"),
            )
        )
    equal = bool(found.get("identical"))
    header = [
        element("th", "MMLU, zero-shot", scope="col"),
        element("th", "Accuracy", scope="col", class_="num"),
        element("th", "Digest of all option log-likelihoods", scope="col"),
    ]
    said = "identical to the last digit" if equal else "NOT identical"
    yield _table(
        f"MMLU by log-likelihood, {int(found.get('num_items') or 0):,} questions: {said}", header, rows
    )


def times(inputs: Inputs) -> Iterator[Markup]:
    """Yield the phases of the run, as one bar and as a table."""
    phases = [phase for phase in inputs.demo.get("phases") or [] if isinstance(phase, dict)]
    if not phases:
        yield element("p", "Missing: demo.json names no phases.", class_="missing")
        return
    shares = [(str(phase.get("name", "")), float(phase.get("seconds") or 0.0)) for phase in phases]
    total = sum(seconds for _, seconds in shares)
    said = "; ".join(f"{name}: {duration(seconds)}" for name, seconds in shares)
    yield element(
        "p",
        "Wall-clock time as measured in this run; work that an earlier run left is reused and not counted.",
        class_="intro",
    )
    rows = []
    for index, phase in enumerate(phases):
        seconds = float(phase.get("seconds") or 0.0)
        swatch = element("span", class_=f"swatch part{index % 6}", aria_hidden="true")
        rows.append(
            element(
                "tr",
                element("th", swatch, str(phase.get("name", "")), scope="row"),
                element("td", duration(seconds), class_="num", data_label="Time"),
                element("td", percent(seconds / total) if total else "–", class_="num", data_label="Share"),
                element("td", str(phase.get("detail") or ""), class_="soft"),
            )
        )
    rows.append(
        element(
            "tr",
            element("th", "Together", scope="row"),
            element("td", duration(total), class_="num", data_label="Time"),
            element("td", "100 %" if total else "–", class_="num", data_label="Share"),
            element("td"),
            class_="total",
        )
    )
    header = [
        element("th", "Phase", scope="col"),
        element("th", "Time", scope="col", class_="num"),
        element("th", "Share", scope="col", class_="num"),
        element("th", "What it did", scope="col"),
    ]
    yield element(
        "div",
        share_bar(shares, description=f"Time by phase: {said}"),
        _table("Time of each phase", header, rows),
        class_="timing",
    )


def made(inputs: Inputs) -> Iterator[Markup]:
    """Yield command, seed, machine, versions and the whole config."""
    demo = inputs.demo
    facts: list[tuple[str, Any]] = []
    for key, name in (
        ("command", "Command"),
        ("started", "Started"),
        ("seed", "Seed"),
        ("core", "Text model"),
        ("data", "Data"),
    ):
        if demo.get(key) is not None:
            facts.append((name, element("code", demo[key]) if key == "command" else str(demo[key])))
    summary: Mapping[str, Any] = inputs.stages[0].summary if inputs.stages else {}
    if summary.get("commit"):
        facts.append(("Commit", element("code", summary["commit"])))
    machine = demo.get("machine") or summary.get("machine")
    if isinstance(machine, dict):
        facts.append(("Machine", ", ".join(f"{key} {value}" for key, value in machine.items())))
    versions = demo.get("versions") or summary.get("versions")
    if isinstance(versions, dict):
        facts.append(("Versions", ", ".join(f"{key} {value}" for key, value in versions.items())))
    yield element(
        "dl",
        *[element("div", element("dt", name), element("dd", value)) for name, value in facts],
        class_="facts",
    )
    config = demo.get("config")
    if config:
        import json

        text = config if isinstance(config, str) else json.dumps(config, indent=2, sort_keys=True)
        yield element(
            "details",
            element("summary", "The whole config"),
            element("pre", element("code", text), tabindex=0),
        )
    else:
        yield element("p", "Missing: demo.json holds no config.", class_="missing")


def not_shown(inputs: Inputs) -> Iterator[Markup]:
    """Yield what a reader might miss here: absent files first, then the limits of the figures."""
    items: list[Any] = []
    for name, what in inputs.missing.items():
        items.append([element("code", name), f" was not found, so the page lacks {what}."])
    items += inputs.notes
    items += [str(note) for note in inputs.demo.get("notes") or []]
    items += _limits(inputs)
    yield element("ul", *[element("li", item) for item in items], class_="plain")


def _limits(inputs: Inputs) -> Sequence[str]:
    limits = []
    if inputs.vqa or inputs.clips:
        limits.append(
            "The intervals say how far the score could move with other test questions. They say nothing "
            "about other training seeds: this is one run."
        )
    if inputs.answers:
        limits.append(
            f"The pictures above are a draw. All {len(inputs.answers):,} answers lie beside this page in "
            "vqa_answers.jsonl."
        )
    if inputs.clip_answers:
        limits.append(
            f"So are the clips; all {len(inputs.clip_answers):,} answers lie in clips_answers.jsonl."
        )
    if inputs.proof:
        limits.append(
            "Text is compared at equal batch shapes. A plain model’s own logits may differ in the last bits "
            "between batch shapes on some processors; that is a property of matrix products and not of the "
            "adapter."
        )
    return limits


def digest(value: str) -> Markup:
    """A digest cut to what an eye can compare, whole in its title."""
    if not value:
        return element("span", "not recorded", class_="soft")
    kind, _, body = value.partition(":")
    short = f"{body[:8]}…{body[-8:]}" if len(body) > 20 else (body or kind)
    return element("span", short, class_="digest", title=value)


def _table(caption: str, header: Sequence[Markup], rows: Sequence[Markup]) -> Markup:
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *header)),
        element("tbody", *rows),
    )
    return element(
        "div",
        table,
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
        style="margin-bottom:18px",
    )
