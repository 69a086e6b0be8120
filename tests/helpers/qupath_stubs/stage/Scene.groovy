package stage

import java.awt.image.BufferedImage
import qupath.lib.gui.viewer.QuPathViewer
import qupath.lib.images.servers.ImageServer
import qupath.lib.images.servers.RotatedImageServer
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
        viewer = new QuPathViewer(facts.open == null ? null : opened(facts.open))
    }

    static ImageServer opened(Map open) {
        def uris = [new URI(open.uri)]
        return open.turns == 0 ? new ImageServer(open.w, open.h, uris) : new RotatedImageServer(open.w, open.h, uris, open.turns)
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
