"""Pictures as SVG and PNG: the same file from the same figures, on light and dark grounds."""

import re
from collections.abc import Iterator
from io import BytesIO
from xml.etree import ElementTree as Tree

from rag.bench.pictures.sheet import WIDE, Picture, settings
from rag.bench.pictures.style import DARK

__all__ = ["dark_rules", "png", "svg"]

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Liberation Sans', Arial, sans-serif"
)
DECIMALS = re.compile(r"-?\d+\.\d+")


def svg(picture: Picture, width: int, *, alone: bool) -> str:
    """Return a picture as SVG, the same text each time; `alone` for a file, with title and colours for dark grounds.

    Text stays text. Colours are attributes, so that the rules of `dark_rules` can replace them.
    """
    sheet = picture.sheet(width, titled=alone)
    with settings({"svg.hashsalt": picture.name}):
        out = BytesIO()
        sheet.figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    Tree.register_namespace("", SVG)
    root = Tree.fromstring(out.getvalue())  # noqa: S314 - matplotlib's own output
    _clean(root, f"{picture.name}-{width}")
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": f"{sheet.whole[0]:.0f}",
        "height": f"{sheet.whole[1]:.0f}",
        "role": "img",
        "aria-label": picture.alt,
        "font-family": FONTS,
        "class": "wide" if width == WIDE else "narrow",
    }
    if alone:
        del root.attrib["class"]
        style = Tree.Element(f"{{{SVG}}}style")
        style.text = f"@media (prefers-color-scheme: dark) {{ {dark_rules()} }}"
        root.insert(0, style)
    return Tree.tostring(root, encoding="unicode")


def png(picture: Picture, width: int = WIDE) -> bytes:
    """Return a picture as PNG at twice its size, with its title, on a light ground."""
    out = BytesIO()
    sheet = picture.sheet(width, titled=True)
    with settings():
        sheet.figure.savefig(out, format="png", dpi=144, metadata={"Software": None})
    return out.getvalue()


def dark_rules(scope: str = "") -> str:
    """Return the style rules that replace light colours by dark ones."""
    rules = (
        f'{scope}[{kind}="{light}"] {{ {kind}: {dark} }}' for light, dark in DARK.items() for kind in ("fill", "stroke")
    )
    return " ".join(rules)


def _clean(root: Tree.Element, prefix: str) -> None:
    """Make colours attributes, numbers short and names unique in a page; drop what nothing refers to."""
    used = set(re.findall(r"#([\w.-]+)", " ".join(_references(root))))
    for element in root.iter():
        _name(element, prefix, used)
        _plain(element)
    for group in root.iter(f"{{{SVG}}}g"):
        _hoist(group)
    for style in root.findall(f".//{{{SVG}}}defs[{{{SVG}}}style]"):
        root.remove(style)


def _name(element: Tree.Element, prefix: str, used: set[str]) -> None:
    if (target := element.attrib.pop(LINK, None)) is not None:
        element.set("href", f"#{prefix}-{target[1:]}")
    if clip := element.get("clip-path"):
        element.set("clip-path", clip.replace("#", f"#{prefix}-"))
    if (name := element.attrib.pop("id", None)) in used:
        element.set("id", f"{prefix}-{name}")


def _plain(element: Tree.Element) -> None:
    for part in element.attrib.pop("style", "").split(";"):
        key, _, value = part.partition(":")
        if value and key.strip() != "font-family":
            element.set(key.strip(), value.strip())
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for key in element.attrib.keys() & {"x", "y", "d"}:
        element.set(key, " ".join(DECIMALS.sub(_rounded, element.attrib[key]).split()))
    element.tail = None
    element.text = (element.text or "").strip() or None


def _hoist(group: Tree.Element) -> None:
    """Move what all the marks of a line have in common to their group."""
    marks = list(group)
    if len(marks) > 1 and all(mark.tag == f"{{{SVG}}}use" for mark in marks):
        for key, value in sorted(set.intersection(*(set(mark.attrib.items()) for mark in marks))):
            if key not in {"x", "y", "href"}:
                group.set(key, value)
                for mark in marks:
                    del mark.attrib[key]


def _references(root: Tree.Element) -> Iterator[str]:
    for element in root.iter():
        yield from (value for key, value in element.attrib.items() if key in {LINK, "clip-path"})


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
