"""Maps as napari shows them, through the reader that it has for OME-Zarr; skips where that is not installed.

pip install napari napari-ome-zarr      # no window is needed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.helpers.heatmaps import INFO, VERSIONS, noise, written

if TYPE_CHECKING:
    from pathlib import Path

    from wsi_saliency.settings import OmeZarrVersion

napari_ome_zarr = pytest.importorskip("napari_ome_zarr")


@pytest.mark.filterwarnings("ignore")  # those of napari and what it brings
@pytest.mark.parametrize("version", VERSIONS)
def test_cells_lie_in_napari_where_they_lie_on_the_slide(tmp_path: Path, version: OmeZarrVersion) -> None:
    from napari.components import ViewerModel

    cells = np.abs(np.stack([noise(300, 400), noise(300, 400, seed=1)]))
    heatmap = written(tmp_path / "saliency.ome.zarr", cells, version)
    read = napari_ome_zarr.napari_get_reader(str(heatmap.path))
    data, facts, kind = read(str(heatmap.path))[0]
    assert kind == "image"
    viewer = ViewerModel()
    viewer.add_image(data, **facts)
    for channel, layer in enumerate(viewer.layers):
        layer.translate = heatmap.info.first_centre_um(0)[::-1]  # as the documentation says
        np.testing.assert_allclose(layer.scale, (heatmap.info.cell_mpp(0).y, heatmap.info.cell_mpp(0).x))
        window = heatmap.windows[channel]
        np.testing.assert_allclose(layer.contrast_limits, (window.start, window.end))
        np.testing.assert_array_equal(np.asarray(layer.data[0])[:300, :400], cells[channel])
        for cell_x, cell_y in ((0, 0), (123, 45)):
            x, y = INFO.placement.centre(cell_x, cell_y)
            # A pixel of the slide lies where its middle is, so pixel 0 is at 0.
            middle = ((y - 0.5) * INFO.slide_mpp.y, (x - 0.5) * INFO.slide_mpp.x)
            np.testing.assert_allclose(layer.data_to_world((cell_y, cell_x)), middle, atol=1e-6)
