"""Robosuite's models, made smaller without changing their physics."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

ARENA_MEMORY = "64M"
"""Upper bound of MuJoCo's scratch memory for one environment; only what is touched counts (0.1 to 1 MB)."""


def slim(xml: str, unused: tuple[str, ...] = ()) -> str:
    """Return a model without visual shapes, sensors, cameras and lights, with a smaller arena: bit-identical physics.

    Robosuite reads no sensor of these tasks, and the forces that its wrists feel cost a twentieth of a physics step.

    MuJoCo's own ``discardvisual`` would do, but only after it has read every visual mesh and texture for every
    environment, which costs most of the time and a gigabyte of memory at the peak.

    Args:
        xml: robosuite's model.
        unused: bodies that a task puts away, ten metres off, where they fall to the floor and lie. There the nut of the
            other shape alone makes more contacts than the whole task, so here they fall on. Nothing that is observed
            depends on them.
    """
    root = ElementTree.fromstring(xml)
    for body in root.iter():
        for element in list(body):
            if element.tag in ("sensor", "camera", "light") or (element.tag == "geom" and _is_visual(element)):
                body.remove(element)
    _drop_unused_assets(root)
    if unused:
        contact = root.find("contact")
        if contact is None:
            contact = ElementTree.SubElement(root, "contact")
        for body in unused:
            ElementTree.SubElement(contact, "exclude", body1="world", body2=body)
    compiler = root.find("compiler")
    if compiler is None:
        compiler = ElementTree.SubElement(root, "compiler")
    compiler.set("discardvisual", "true")
    for size in root.findall("size"):
        root.remove(size)
    ElementTree.SubElement(root, "size").set("memory", ARENA_MEMORY)
    return ElementTree.tostring(root, encoding="unicode")


def hollow(xml: str) -> str:
    """Return a model whose visual shapes are there by name only: what robosuite needs to set itself up, and no more.

    Reading the visual meshes and textures takes MuJoCo 400 MB and half a second.
    """
    root = ElementTree.fromstring(xml)
    for geom in root.iter("geom"):
        if _is_visual(geom):
            for attribute in ("mesh", "fromto", "quat", "euler", "axisangle"):
                geom.attrib.pop(attribute, None)
            geom.attrib.update(type="sphere", size="0.001")
    _drop_unused_assets(root)
    return ElementTree.tostring(root, encoding="unicode")


def _is_visual(geom: ElementTree.Element) -> bool:
    return geom.get("contype") == "0" and geom.get("conaffinity") == "0"


def _drop_unused_assets(root: ElementTree.Element) -> None:
    """Leave out all textures and materials, and the meshes that no shape uses."""
    used = {geom.get("mesh") for geom in root.iter("geom")}
    asset = root.find("asset")
    if asset is not None:
        for item in list(asset):
            if item.tag != "mesh" or item.get("name") not in used:
                asset.remove(item)
    for element in root.iter():
        element.attrib.pop("material", None)


def with_object(xml: str, thing: Any) -> str:
    """Return a model in which one of robosuite's objects is replaced by another of the same name.

    Args:
        xml: the whole model.
        thing: a robosuite ``MujocoObject``.
    """
    root = ElementTree.fromstring(xml)
    world = root.find("worldbody")
    assert world is not None
    for place, body in enumerate(list(world)):
        if body.get("name") == thing.root_body:
            world.remove(body)
            world.insert(place, thing.get_obj())
    return ElementTree.tostring(root, encoding="unicode")
