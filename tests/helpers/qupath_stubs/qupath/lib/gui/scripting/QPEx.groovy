package qupath.lib.gui.scripting

import qupath.lib.gui.QuPathGUI
import qupath.lib.gui.viewer.QuPathViewer
import qupath.lib.projects.Project
import stage.Scene

class QPEx {
    static QuPathViewer getCurrentViewer() { Scene.now.facts.window ? Scene.now.viewer : null }

    static QuPathGUI getQuPath() { Scene.now.facts.window ? new QuPathGUI() : null }

    static Project getProject() { Scene.now.facts.project_open ? Scene.project : null }
}
