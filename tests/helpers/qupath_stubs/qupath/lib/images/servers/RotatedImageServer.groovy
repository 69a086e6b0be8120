package qupath.lib.images.servers

// Shows an image turned clockwise; width and height are those that are seen.
class RotatedImageServer extends ImageServer {
    enum Rotation { ROTATE_NONE, ROTATE_90, ROTATE_180, ROTATE_270 }

    private final Rotation rotation

    RotatedImageServer(int width, int height, List<URI> uris, int turns) {
        super(width, height, uris)
        rotation = Rotation.values()[turns]
    }

    Rotation getRotation() { rotation }
}
