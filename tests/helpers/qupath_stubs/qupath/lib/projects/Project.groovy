package qupath.lib.projects

import qupath.lib.images.ImageData
import qupath.lib.images.servers.ImageServer
import qupath.lib.images.servers.ServerBuilder
import stage.Scene

class Project {
    final List<Entry> imageList = []

    Entry addImage(ServerBuilder builder) {
        def entry = new Entry(builder.build())
        imageList << entry
        Scene.now.note('addImage', [uri: builder.uri.toString()])
        return entry
    }

    void syncChanges() { Scene.now.note('syncChanges') }
}

class Entry {
    private final ImageData imageData

    Entry(ImageServer server) { imageData = new ImageData(server) }

    Collection<URI> getURIs() { imageData.server.getURIs() }

    void setImageName(String name) { Scene.now.note('setImageName', [name: name]) }

    ImageData readImageData() { imageData }

    void saveImageData(ImageData imageData) {
        Scene.now.note('saveImageData', [type: imageData.imageType.name(), ids: imageData.hierarchy.objects*.getID()*.toString()])
    }
}
