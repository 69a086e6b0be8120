package qupath.lib.images.servers

import stage.Scene

class ImageServerProvider {
    static UriImageSupport getPreferredUriImageSupport(Class type, String path) {
        def size = Scene.now.facts.slides[new File(new URI(path)).path]
        return size == null ? null : new UriImageSupport([new ServerBuilder(new URI(path), size.w, size.h)])
    }
}

class UriImageSupport {
    final List<ServerBuilder> builders

    UriImageSupport(List<ServerBuilder> builders) { this.builders = builders }
}
