package qupath.lib.projects

import stage.Scene

class ProjectIO {
    static Project loadProject(File file, Class type) {
        assert file.isFile()
        Scene.now.note('loadProject', [file: file.path, type: type.simpleName])
        return new Project()
    }
}
