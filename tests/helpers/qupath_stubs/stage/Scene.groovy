package stage

import java.awt.image.BufferedImage
import qupath.lib.gui.viewer.QuPathViewer
import qupath.lib.images.servers.ImageServer
import qupath.lib.projects.Project

// What is open in the window, what the user answers, and what was called.
class Scene {
    static Scene now
    static Project project  // that of the scene before
    Map facts
    List calls = []
    QuPathViewer viewer

    Scene(Map facts) {
        this.facts = facts
        def open = facts.open == null ? null : new ImageServer(facts.open.w, facts.open.h, [new URI(facts.open.uri)])
        viewer = new QuPathViewer(open)
    }

    void note(String name, Map what = [:]) { calls << [call: name] + what }

    // What the window shows over an empty slide, at full resolution.
    BufferedImage painted() {
        def picture = new BufferedImage(facts.open.w, facts.open.h, BufferedImage.TYPE_INT_ARGB)
        def graphics = picture.createGraphics()
        viewer.getCustomPixelLayerOverlay()?.regions?.each { region, image ->
            graphics.drawImage(image, region.x, region.y, region.width, region.height, null)
        }
        graphics.dispose()
        return picture
    }
}
