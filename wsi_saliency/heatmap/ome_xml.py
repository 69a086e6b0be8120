"""OME-XML (schema 2016-06) of a heatmap, the same for OME-TIFF and OME-Zarr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsi_saliency.geometry import Size
    from wsi_saliency.heatmap.pyramid import HeatmapInfo

NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
SCHEMA = f"{NAMESPACE} {NAMESPACE}/ome.xsd"
PLACEMENT_NAMESPACE = "wsi-saliency/placement"
"""Namespace of the annotation that places the map on the slide; its keys are those of `HeatmapInfo.facts`."""
DETAILS_NAMESPACE = "wsi-saliency/details"
"""Namespace of the annotation that holds `HeatmapInfo.details`."""
COLOURS = ("FFA500", "00BFFF", "FF3D7F", "7CFC00", "BA75FF", "FFE119", "00E5C8", "FFFFFF")
"""Colours of the channels in viewers that give them one: red, green and blue in hexadecimal."""


def ome_xml(info: HeatmapInfo, size: Size, padded: Size, pixels_in: Literal["tiff", "elsewhere"]) -> bytes:
    """Describe a heatmap of ``size`` cells, stored as ``padded`` cells, as OME-XML in UTF-8.

    ``pixels_in`` says whether the pixels lie in the first IFDs of the TIFF file that holds the text, one for
    each channel, or in a store beside it.
    """
    ome = ET.Element("OME", {"xmlns": NAMESPACE, "Creator": "wsi-saliency"})
    ome.set("xmlns:xsi", "http://www.w3.org/2001/XMLSchema-instance")
    ome.set("xsi:schemaLocation", SCHEMA)
    annotations: dict[str, Mapping[str, str | int | float]] = {
        PLACEMENT_NAMESPACE: info.facts(size),
        DETAILS_NAMESPACE: info.details,
    }
    _add_image(ome, info, padded, pixels_in, len(annotations))
    structured = ET.SubElement(ome, "StructuredAnnotations")
    for number, (namespace, entries) in enumerate(annotations.items()):
        _add_map_annotation(structured, number, namespace, entries)
    # Not ASCII: Bio-Formats knows no unit "&#181;m", and then takes the whole file for a plain TIFF.
    text: bytes = ET.tostring(ome, encoding="UTF-8", xml_declaration=True)
    return text


def _add_image(ome: ET.Element, info: HeatmapInfo, padded: Size, pixels_in: str, annotations: int) -> None:
    image = ET.SubElement(ome, "Image", ID="Image:0", Name=info.slide_name)
    described = f"Saliency of {info.slide_name}: {', '.join(info.channels)}"
    ET.SubElement(image, "Description").text = described
    pixels = ET.SubElement(image, "Pixels", _pixels(info, padded))
    for i, name in enumerate(info.channels):
        channel = {"ID": f"Channel:0:{i}", "Name": name, "SamplesPerPixel": "1"}
        ET.SubElement(pixels, "Channel", channel, Color=str(_signed_rgba(colour_of(i))))
    if pixels_in == "tiff":
        ET.SubElement(pixels, "TiffData", IFD="0", PlaneCount=str(len(info.channels)))
    else:
        ET.SubElement(pixels, "MetadataOnly")
    for number in range(annotations):
        ET.SubElement(image, "AnnotationRef", ID=f"Annotation:{number}")


def _pixels(info: HeatmapInfo, padded: Size) -> dict[str, str]:
    cell = info.cell_mpp(0)
    return {
        "ID": "Pixels:0",
        "DimensionOrder": "XYCZT",
        "Type": "float",
        "SignificantBits": "32",
        "Interleaved": "false",
        "BigEndian": "false",
        "SizeX": str(padded.w),
        "SizeY": str(padded.h),
        "SizeC": str(len(info.channels)),
        "SizeZ": "1",
        "SizeT": "1",
        "PhysicalSizeX": str(float(cell.x)),
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": str(float(cell.y)),
        "PhysicalSizeYUnit": "µm",
    }


def _add_map_annotation(
    structured: ET.Element, number: int, namespace: str, entries: Mapping[str, str | int | float]
) -> None:
    annotation = ET.SubElement(structured, "MapAnnotation", ID=f"Annotation:{number}", Namespace=namespace)
    value = ET.SubElement(annotation, "Value")
    for key, entry in entries.items():
        ET.SubElement(value, "M", K=key).text = str(entry)


def colour_of(channel: int) -> str:
    """Return the colour of a channel in viewers, by its number."""
    return COLOURS[channel % len(COLOURS)]


def _signed_rgba(colour: str) -> int:
    """OME's colour: red, green, blue and an opaque alpha as one signed 32-bit integer."""
    return int.from_bytes(bytes.fromhex(colour + "FF"), "big", signed=True)
