package qupath.lib.gui.viewer

import javafx.application.Platform
import stage.Scene

class OverlayOptions {
    void setShowPixelClassification(boolean show) {
        assert Platform.running: 'the window may be touched by its own thread only'
        Scene.now.note('setShowPixelClassification', [show: show])
    }
}
