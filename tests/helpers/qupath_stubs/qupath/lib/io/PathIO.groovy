package qupath.lib.io

import groovy.json.JsonSlurper
import java.nio.file.Path
import java.util.zip.GZIPInputStream

class PathIO {
    static List<PathObject> readObjects(Path path) {
        def stream = path.toFile().newInputStream()
        if (path.toString().endsWith('.gz'))
            stream = new GZIPInputStream(stream)
        return stream.withCloseable { new JsonSlurper().parse(it, 'UTF-8').features.collect { new PathObject(UUID.fromString(it.id)) } }
    }
}

class PathObject {
    private final UUID id

    PathObject(UUID id) { this.id = id }

    UUID getID() { id }
}
