package qupath.lib.gui.viewer

import javafx.application.Platform
import qupath.lib.gui.viewer.overlays.BufferedImageOverlay
import qupath.lib.images.servers.ImageServer
import stage.Scene

class QuPathViewer {
    private final ImageServer server
    private BufferedImageOverlay overlay

    QuPathViewer(ImageServer server) { this.server = server }

    ImageServer getServer() { Scene.now.facts.changes && Platform.running ? null : server }

    OverlayOptions getOverlayOptions() { new OverlayOptions() }

    BufferedImageOverlay getCustomPixelLayerOverlay() {
        overlay ?: (Scene.now.facts.shown ? new BufferedImageOverlay(this, [:]) : null)
    }

    void setCustomPixelLayerOverlay(BufferedImageOverlay overlay) {
        assert Platform.running: 'the window may be touched by its own thread only'
        this.overlay = overlay
        Scene.now.note('setCustomPixelLayerOverlay', [removed: overlay == null])
    }
}
