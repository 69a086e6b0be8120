package qupath.lib.images

import qupath.lib.images.servers.ImageServer
import stage.Scene

class ImageData {
    enum ImageType { BRIGHTFIELD_H_E, FLUORESCENCE, UNSET }

    final ImageServer server
    final Hierarchy hierarchy = new Hierarchy()
    ImageType imageType = ImageType.UNSET

    ImageData(ImageServer server) { this.server = server }
}

class Hierarchy {
    final List objects = []

    Collection getAllObjects(boolean includeRoot) { new ArrayList(objects) }

    void addObjects(Collection added) { objects.addAll(added) }
}
