"""`Show`: what the demo puts on the terminal: live bars on one, plain lines elsewhere, and a picture of it all."""

from __future__ import annotations

import io
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from brokerkit import DeadLetter
from examples.export_service.ledger import Figures, Submitted

__all__ = ["Show"]

#: Seconds between two lines of progress where there is no terminal.
_PLAIN_EVERY = 2.0
_BAR = 36
_PICTURE_WIDTH = 104
#: rich's own picture loads its font from a server; this one uses what the reader has.
_SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
.{unique_id}-title {{ font-size: 18px; font-family: sans-serif; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class Show:
    """Tells the story of one run; also remembers it for the picture.

    Where nobody looks any more (a closed terminal, a pipe without a reader) ``gone`` is True, and the rest is silence:
    what is being stopped at that moment has to be stopped all the same.
    """

    def __init__(self, console: Console) -> None:
        self.gone = False
        self._console = console
        self._live: Live | None = None
        self._told: list[RenderableType] = []
        self._began = time.monotonic()
        self._next_plain = 0.0
        self._last_plain = ""

    def say(self, markup: str) -> None:
        """Tell one thing that happened."""
        line = Text.from_markup(markup)
        self._told.append(line)
        self._print(line, soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Put something larger below the story."""
        self._told.append(what)
        self._print(what)

    def fail(self, sentence: str) -> None:
        """Say what went wrong."""
        self.end()
        self._print(Text(sentence, style="bold red"), soft_wrap=True)

    def _print(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        self._draw(lambda: self._console.print(what, soft_wrap=soft_wrap, highlight=False))

    def _draw(self, draw: Callable[[], object]) -> None:
        if self.gone:
            return
        try:
            draw()
        except (OSError, SystemExit):
            # rich ends the program for a pipe without a reader (`Console.on_broken_pipe`).
            self.gone = True

    # --- progress -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the bars."""
        self._began = time.monotonic()
        if self._console.is_terminal:
            # Drawn by us only, so that nothing is drawn that did not change.
            live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live = live
            self._draw(live.start)

    def progress(self, figures: Figures, total: int) -> None:
        """Show how far it is."""
        if (live := self._live) is not None:
            self._draw(lambda: live.update(self._bars(figures, total), refresh=True))
            return
        now = time.monotonic()
        line = f"{figures.done + figures.dead} of {total} settled: {_counts(figures)}"
        if now >= self._next_plain and line != self._last_plain:
            self._next_plain = now + _PLAIN_EVERY
            self._last_plain = line
            self._print(Text(line), soft_wrap=True)

    def remember_bars(self, figures: Figures, total: int) -> None:
        """Keep the bars as they are now for the picture."""
        self._told += [Text(), self._bars(figures, total), Text()]

    def end(self) -> None:
        """Leave the bars as they are."""
        if self._live is not None:
            live, self._live = self._live, None
            self._draw(live.stop)

    def _bars(self, figures: Figures, total: int) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=5)
        grid.add_column(width=_BAR)
        grid.add_column(justify="right", min_width=10)
        grid.add_column(min_width=8)
        for name, (count, settled, dead) in figures.formats.items():
            note = f"[red]{dead} dead[/red]" if dead else ""
            bar = ProgressBar(count, settled, width=_BAR, complete_style="green", finished_style="green")
            grid.add_row(name, bar, f"{settled} of {count}", note)
        settled = figures.done + figures.dead
        seconds = f"[dim]{time.monotonic() - self._began:.0f} s[/dim]"
        bar = ProgressBar(total, settled, width=_BAR, complete_style="cyan", finished_style="cyan")
        grid.add_row("[bold]all[/bold]", bar, f"[bold]{settled} of {total}[/bold]", seconds)
        return Group(grid, Text(_counts(figures), style="dim"))

    # --- the end --------------------------------------------------------------------------------------------------

    def account(self, figures: Figures, *, expected_dead: int, notes: Mapping[str, str]) -> None:
        """Show the table; ``notes`` explains figures by their name."""
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
        table.add_column()
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim")
        rows = (
            ("submitted", str(figures.submitted), ""),
            ("done", f"[green]{figures.done}[/green]", "finished files"),
            ("retried", str(figures.retried), "tasks that needed more than one attempt"),
            ("skipped", str(figures.skipped), "came again although their file was there"),
            (
                "dead",
                _colour(figures.dead, figures.dead == expected_dead, "yellow"),
                "given up on, each with its reason",
            ),
            ("lost", _colour(figures.lost, not figures.lost), "neither file nor dead letter"),
            ("doubled", _colour(figures.doubled, not figures.doubled), "finished files that were replaced"),
            ("throughput", _per_second(figures.throughput), "first send to last file"),
            ("p95", _seconds(figures.p95), f"send to file; the median is {_seconds(figures.median)}"),
            ("p95 render", _seconds(figures.render_p95), "one document, in its handler"),
        )
        for name, value, meaning in rows:
            table.add_row(name, f"[bold]{value}[/bold]", escape(notes.get(name, meaning)))
        self.say("")
        self.show(table)
        self.say("")

    def dead_letters(self, letters: Mapping[str, DeadLetter], submitted: Mapping[str, Submitted]) -> None:
        """Show why tasks were given up on: one line for all that died of the same thing."""
        if not letters:
            return
        groups: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
        for task_id, letter in letters.items():
            died = (letter.reason or "?", letter.error_type or "", letter.error or "")
            groups[(submitted[task_id].template_id, *died)].append(task_id)
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2), title="dead letters")
        table.title_justify, table.title_style = "left", "bold yellow"
        table.add_column("tasks", justify="right")
        table.add_column("template")
        table.add_column("reason")
        table.add_column("error", overflow="fold")
        for (template, reason, error_type, error), task_ids in groups.items():
            what = ": ".join(part for part in (error_type.rpartition(".")[2], error) if part)
            table.add_row(str(len(task_ids)), *map(escape, (template, reason, what)))
        self.show(table)

    def next_steps(self, title: str, commands: Sequence[tuple[str, str]]) -> None:
        """Show commands with what they do; each on a line of its own, to be copied."""
        self.say(f"\n[bold]{title}[/bold]")
        for command, meaning in commands:
            self.say(f"  [cyan]{escape(command)}[/cyan]" + (f"  [dim]# {escape(meaning)}[/dim]" if meaning else ""))

    def picture(self, path: Path) -> None:
        """Write what was told as SVG, with the bars as they were remembered; raise `OSError`."""
        console = Console(
            record=True, width=_PICTURE_WIDTH, file=io.StringIO(), force_terminal=True, legacy_windows=False
        )
        for one in (*self._told, Text()):  # below the last line rich cuts
            console.print(one, highlight=False)
        path.write_text(console.export_svg(title="make demo", code_format=_SVG), encoding="utf-8")


def _counts(figures: Figures) -> str:
    parts = {"submitted": figures.submitted, "done": figures.done, "retried": figures.retried, "dead": figures.dead}
    rate = f"   {_per_second(figures.throughput)}" if figures.throughput is not None else ""
    return "   ".join(f"{name} {count}" for name, count in parts.items()) + rate


def _colour(value: int, good: bool, style: str = "green") -> str:
    return f"[{style if good else 'red'}]{value}[/]"


def _per_second(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} /s"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
