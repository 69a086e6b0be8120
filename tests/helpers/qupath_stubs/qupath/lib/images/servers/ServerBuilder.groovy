package qupath.lib.images.servers

import stage.Scene

class ServerBuilder {
    final URI uri
    private final int width, height

    ServerBuilder(URI uri, int width, int height) {
        this.uri = uri
        this.width = width
        this.height = height
    }

    ImageServer build() { Scene.opened([w: width, h: height, uri: uri.toString(), turns: Scene.now.facts.turns]) }
}
