package qupath.lib.gui.viewer.overlays

import java.awt.image.BufferedImage
import qupath.lib.gui.viewer.QuPathViewer
import qupath.lib.regions.ImageRegion
import stage.Scene

class BufferedImageOverlay {
    final Map<ImageRegion, BufferedImage> regions

    BufferedImageOverlay(QuPathViewer viewer, Map<ImageRegion, BufferedImage> regions) {
        this.regions = regions
        regions.each { ImageRegion region, BufferedImage image ->
            Scene.now.note('overlay', [x: region.x, y: region.y, w: region.width, h: region.height,
                image_w: image.width, image_h: image.height])
        }
    }
}
