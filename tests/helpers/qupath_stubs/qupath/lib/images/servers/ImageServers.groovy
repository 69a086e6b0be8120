package qupath.lib.images.servers

import groovy.json.JsonSlurper
import stage.Scene

// Opens NAME by NAME.json, which says w and h, and NAME.raw: float32, channel by channel.
class ImageServers {
    static ImageServer buildServer(URI uri, String... args) {
        Scene.now.note('buildServer', [uri: uri.toString()])
        def size = new JsonSlurper().parse(new File(new File(uri).path + '.json'))
        return new ImageServer(size.w, size.h, [uri])
    }
}
