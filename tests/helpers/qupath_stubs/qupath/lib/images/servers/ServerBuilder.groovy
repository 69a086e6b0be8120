package qupath.lib.images.servers

class ServerBuilder {
    final URI uri
    private final int width, height

    ServerBuilder(URI uri, int width, int height) {
        this.uri = uri
        this.width = width
        this.height = height
    }

    ImageServer build() { new ImageServer(width, height, [uri]) }
}
