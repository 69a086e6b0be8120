package qupath.lib.gui.scripting

import qupath.lib.gui.viewer.QuPathViewer
import stage.Scene

class QPEx {
    static QuPathViewer getCurrentViewer() { Scene.now.viewer }
}
