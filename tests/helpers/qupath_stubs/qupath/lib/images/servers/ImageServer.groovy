package qupath.lib.images.servers

import groovy.transform.CompileStatic
import java.awt.Transparency
import java.awt.color.ColorSpace
import java.awt.image.BandedSampleModel
import java.awt.image.BufferedImage
import java.awt.image.ComponentColorModel
import java.awt.image.DataBuffer
import java.awt.image.DataBufferFloat
import java.awt.image.Raster
import java.awt.image.WritableRaster
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.Files
import java.nio.file.Paths
import qupath.lib.regions.RegionRequest
import stage.Scene

class ImageServer implements AutoCloseable {
    private final int width, height
    private final List<URI> uris

    ImageServer(int width, int height, List<URI> uris) {
        this.width = width
        this.height = height
        this.uris = uris
    }

    int getWidth() { width }

    int getHeight() { height }

    Collection<URI> getURIs() { uris }

    void close() { Scene.now.note('close') }

    BufferedImage readRegion(RegionRequest request) {
        Scene.now.note('readRegion', [downsample: request.downsample])
        return averaged(Files.readAllBytes(Paths.get(new File(uris[0]).path + '.raw')), width, height, request.downsample as int)
    }

    @CompileStatic
    static BufferedImage averaged(byte[] bytes, int w, int h, int step) {
        def values = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
        int bands = values.limit().intdiv(w * h) as int, outW = w.intdiv(step) as int, outH = h.intdiv(step) as int
        def model = new BandedSampleModel(DataBuffer.TYPE_FLOAT, outW, outH, bands)
        WritableRaster raster = Raster.createWritableRaster(model, new DataBufferFloat(outW * outH, bands), null)
        for (int band = 0; band < bands; band++)
            for (int y = 0; y < outH; y++)
                for (int x = 0; x < outW; x++) {
                    double sum = 0
                    for (int dy = 0; dy < step; dy++)
                        for (int dx = 0; dx < step; dx++)
                            sum += values.get((band * h + y * step + dy) * w + x * step + dx)
                    raster.setSample(x, y, band, sum / (step * step))
                }
        def colours = new ComponentColorModel(new Grey(bands), false, false, Transparency.OPAQUE, DataBuffer.TYPE_FLOAT)
        return new BufferedImage(colours, raster, false, null)
    }
}

// A colour space of any number of channels.
class Grey extends ColorSpace {
    Grey(int bands) { super(ColorSpace.TYPE_2CLR - 2 + Math.max(bands, 2), bands) }

    float[] toRGB(float[] values) { [values[0]] * 3 as float[] }

    float[] fromRGB(float[] rgb) { rgb }

    float[] toCIEXYZ(float[] values) { values }

    float[] fromCIEXYZ(float[] values) { values }
}
