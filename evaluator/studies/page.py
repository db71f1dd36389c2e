"""A study as one HTML file to mail, print and archive: plots are embedded, nothing is loaded or executed."""

import base64
from typing import Any

from evaluator.output.templates import page_environment
from evaluator.studies.figures import plots
from evaluator.studies.summary import frames_text, played_text, runs_text

Summary = dict[str, Any]


def render_page(summary: Summary) -> str:
    """The page, from what `summarize` returned."""
    environment = page_environment("evaluator.studies")
    environment.filters |= {"entry": _entry, "ends": _ends, "frames": frames_text, "played": played_text}
    environment.filters["runs"] = runs_text
    return environment.get_template("page.html.j2").render(
        summary=summary, pictures={name: _uri(data) for name, data in plots(summary).items()}
    )


def _uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _entry(entry: Summary, spec: str = ".3f") -> str:
    """A value and its interval."""
    ends = _ends(entry["interval"], spec)
    return f"{entry['value']:{spec}}" + (f" [{ends}]" if ends else "")


def _ends(interval: list[float] | None, spec: str = ".3f") -> str:
    return "" if interval is None else f"{interval[0]:{spec}}, {interval[1]:{spec}}"
