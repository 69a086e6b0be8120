package qupath.lib.regions

class ImageRegion {
    final int x, y, width, height, z, t

    private ImageRegion(int x, int y, int width, int height, int z, int t) {
        this.x = x
        this.y = y
        this.width = width
        this.height = height
        this.z = z
        this.t = t
    }

    static ImageRegion createInstance(int x, int y, int width, int height, int z, int t) {
        assert width > 0 && height > 0
        return new ImageRegion(x, y, width, height, z, t)
    }
}
