"""A run as one HTML file: distributions, and latency over time."""

from pathlib import Path

from engineroom.bench.load import Run
from engineroom.bench.report import Report
from engineroom.errors import InputError, StoreError

#: Points of a distribution: more cannot be seen.
_POINTS = 400


def write_plot(path: Path, run: Run, report: Report, title: str) -> None:
    """Write ``path``, which any browser shows without a network. Raises InputError without plotly."""
    try:
        from plotly.graph_objects import Scatter
        from plotly.subplots import make_subplots
    except ModuleNotFoundError:
        raise InputError("plotly is not installed", where="--plot", fix="pip install 'engineroom[bench]'") from None
    figure = make_subplots(
        rows=2,
        cols=1,
        subplot_titles=("Share of values below", "By the time at which a request was due"),
        vertical_spacing=0.12,
    )
    names = {"ttft": "TTFT", "itl": "ITL", "e2e": "end to end"}
    for name, spread in report.spreads.items():
        if spread.at(50) is None:
            continue
        percents = [100 * point / _POINTS for point in range(_POINTS + 1)]
        milliseconds = [(spread.at(percent) or 0.0) * 1000 for percent in percents]
        figure.add_trace(Scatter(x=milliseconds, y=percents, name=names[name], mode="lines"), row=1, col=1)
    whole = [sent for sent in run.requests if sent.error is None and sent.tokens_at]
    due = [sent.due - run.began for sent in whole]
    for name, values in (
        ("TTFT", [(sent.tokens_at[0] - sent.due) * 1000 for sent in whole]),
        ("end to end", [(sent.ended - sent.due) * 1000 for sent in whole]),
    ):
        figure.add_trace(Scatter(x=due, y=values, name=f"{name}, each request", mode="markers"), row=2, col=1)
    failed = [sent for sent in run.requests if sent.error is not None]
    if failed:
        figure.add_trace(
            Scatter(
                x=[sent.due - run.began for sent in failed],
                y=[(sent.ended - sent.due) * 1000 for sent in failed],
                name="errors",
                mode="markers",
                marker={"symbol": "x", "color": "red"},
                text=[sent.error for sent in failed],
            ),
            row=2,
            col=1,
        )
    figure.update_xaxes(title_text="ms", type="log", row=1, col=1)
    figure.update_yaxes(title_text="%", row=1, col=1)
    figure.update_xaxes(title_text="s", row=2, col=1)
    figure.update_yaxes(title_text="ms", row=2, col=1)
    figure.update_layout(title=title, height=900)
    try:
        path.write_text(figure.to_html(include_plotlyjs=True), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write it ({error.strerror})", where=str(path)) from None
