package qupath.lib.regions

import qupath.lib.images.servers.ImageServer

class RegionRequest {
    final double downsample

    private RegionRequest(double downsample) { this.downsample = downsample }

    static RegionRequest createInstance(ImageServer server, double downsample) { new RegionRequest(downsample) }
}
