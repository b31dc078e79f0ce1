"""The page of a run, read as a browser reads it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from headscope.reporting import write_report

VOID = {"meta", "img", "br", "path", "rect", "circle"}


class Page(HTMLParser):
    """Collects what a test asks of a page; raises where a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.tags, self.words = text, list[str](), list[tuple[str, dict[str, str | None]]](), list[str]()
        self.rows: list[list[str]] = []
        self.feed(text)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag, f"{tag} closed out of turn"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)
        if self.rows and "table" in self.open:
            self.rows[-1][-1:] = [self.rows[-1][-1] + data] if self.rows[-1] else []

    @property
    def said(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words).replace("\u00a0", " "))


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))
