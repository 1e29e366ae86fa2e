# SPDX-License-Identifier: GPL-2.0-or-later
"""Elements of HTML and SVG as one short call each, escaped by the standard library."""

from xml.etree import ElementTree

__all__ = ["Element", "el", "serialize"]

Element = ElementTree.Element


def el(tag: str, *children: "Element | str | None", **attributes: str | float | None) -> Element:
    """Build an element.

    Args:
        tag: Its name.
        children: Elements and text in order; None is left out.
        attributes: Underscores become dashes, one at the end falls away (`class_`); None is left
            out; floats are written with at most two decimals, which is a hundredth of a pixel.
    """
    element = ElementTree.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
            element.set(name.rstrip("_").replace("_", "-"), text)
    last: Element | None = None
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            if last is None:
                element.text = (element.text or "") + child
            else:
                last.tail = (last.tail or "") + child
        else:
            element.append(child)
            last = child
    return element


def serialize(element: Element) -> str:
    """Write an element as HTML, with inline SVG as HTML allows it."""
    return ElementTree.tostring(element, encoding="unicode", method="html")
