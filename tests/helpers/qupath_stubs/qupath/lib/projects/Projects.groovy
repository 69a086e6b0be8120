package qupath.lib.projects

import stage.Scene

class Projects {
    static Project createProject(File folder, Class type) {
        assert folder.isDirectory()
        Scene.now.note('createProject', [folder: folder.path, type: type.simpleName])
        return new Project()
    }
}
