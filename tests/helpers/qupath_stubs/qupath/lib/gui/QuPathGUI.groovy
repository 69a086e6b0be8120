package qupath.lib.gui

import javafx.application.Platform
import qupath.lib.projects.Project
import stage.Scene

class QuPathGUI {
    void setProject(Project project) {
        assert Platform.running: 'the window may be touched by its own thread only'
        Scene.now.note('setProject')
        Scene.project = project
    }

    void refreshProject() {
        assert Platform.running: 'the window may be touched by its own thread only'
        Scene.now.note('refreshProject')
    }
}
