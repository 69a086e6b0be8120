package qupath.lib.gui.scripting

import qupath.lib.gui.QuPathGUI
import qupath.lib.gui.viewer.QuPathViewer
import qupath.lib.projects.Project
import stage.Scene

class QPEx {
    static QuPathViewer getCurrentViewer() { Scene.now.viewer }

    static QuPathGUI getQuPath() { new QuPathGUI() }

    static Project getProject() { Scene.now.facts.project_open ? Scene.project : null }
}
