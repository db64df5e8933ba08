"""The page of a request, as a browser reads it."""

from html.parser import HTMLParser

VOID = {"meta", "br", "img"}


class Reader(HTMLParser):
    """What a browser would make of the page. Raises: AssertionError when tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.marks: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.marks.append((tag, dict(attributes)))
        self.links += [value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.marks.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data.strip())

    @property
    def text(self):
        return " ".join(text for text in self.texts if text)

    def rects(self, style):
        """(x, width) in percent of all with this class."""
        found = [marks for tag, marks in self.marks if tag == "rect" and style in (marks.get("class") or "").split()]
        places = [(marks["x"] or "", marks["width"] or "") for marks in found]
        return [(float(x.rstrip("%")), float(width.rstrip("%"))) for x, width in places if "%" in x]
