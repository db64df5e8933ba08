"""The acceptance table: every figure beside its limit."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """passed: None where the figure has no limit."""

    what: str
    figure: str
    limit: str
    passed: bool | None


@dataclass
class Table:
    title: str
    rows: list[Row] = field(default_factory=list)

    def tell(self, what: str, figure: str) -> None:
        self.rows.append(Row(what, figure, "", None))

    def at_most(self, what: str, value: float, limit: float, unit: str = "", note: str = "", digits: int = 1) -> None:
        self._add(what, value, limit, "≤", value <= limit, unit, note, digits)

    def at_least(self, what: str, value: float, limit: float, unit: str = "", note: str = "", digits: int = 1) -> None:
        self._add(what, value, limit, "≥", value >= limit, unit, note, digits)

    def _add(
        self, what: str, value: float, limit: float, sign: str, passed: bool, unit: str, note: str, digits: int
    ) -> None:
        figure = f"{value:.{digits}f}{unit}" + (f" ({note})" if note else "")
        self.rows.append(Row(what, figure, f"{sign} {limit:g}{unit}", bool(passed)))  # NaN passes nothing

    @property
    def failed(self) -> int:
        return sum(row.passed is False for row in self.rows)

    def markdown(self) -> str:
        mark = {True: "pass", False: "**FAIL**", None: ""}
        cells = [["", "measured", "limit", ""], *([r.what, r.figure, r.limit, mark[r.passed]] for r in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        texts = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
        texts.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        return f"{self.title}\n\n" + "\n".join(texts)
