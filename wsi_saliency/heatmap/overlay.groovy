// Lays a saliency map over its slide in QuPath 0.5, 0.6 or 0.7. Written by wsi-saliency.
//
// Open the slide, drag this file onto QuPath's window, and choose Run > Run. Run it again for another map,
// or to take the map away.

import com.google.gson.Gson
import groovy.transform.CompileStatic
import java.awt.image.BufferedImage
import java.awt.image.Raster
import java.text.Normalizer
import javafx.application.Platform
import qupath.fx.dialogs.Dialogs
import qupath.lib.gui.scripting.QPEx
import qupath.lib.gui.viewer.overlays.BufferedImageOverlay
import qupath.lib.images.servers.ImageServers
import qupath.lib.regions.ImageRegion
import qupath.lib.regions.RegionRequest

class Told extends Exception {
    Told(String message) { super(message) }
}

class SaliencyOverlay {
    static final String TITLE = 'Saliency map'
    static final String NONE = 'none: take the map away'
    static final long MOST_VALUES = 64_000_000L  // what is loaded at most; 256 MB

    // The facts are JSON, packed so that no name in them can be taken for a part of this script.
    static Map facts() {
        String json = new String([
            'FACTS',
        ].join('').decodeBase64(), 'UTF-8')
        return new Gson().fromJson(json, Map)
    }

    static void run(Collection variables) {
        def viewer = QPEx.getCurrentViewer()
        def image = viewer?.getServer()
        Map facts = facts()
        if (image == null)
            throw new Told("No image is open. Open ${facts.slide.name}, and run the script again.")
        List corner = cornerOf(facts.slide, image)
        if (!isNamed(facts.slide.name, image) && !Dialogs.showConfirmDialog(TITLE, otherName(facts.slide.name, image)))
            return
        String label = chosen(facts.views*.label, viewer.getCustomPixelLayerOverlay() != null)
        if (label == null)
            return
        if (label == NONE) {
            Platform.runLater { viewer.setCustomPixelLayerOverlay(null) }
            return
        }
        Map view = facts.views.find { it.label == label }
        File file = find(view.file, folders(variables, facts.folder))
        def overlay = new BufferedImageOverlay(viewer, load(file, view, facts.colours, corner))
        Platform.runLater { viewer.setCustomPixelLayerOverlay(overlay) }
        Dialogs.showInfoNotification(TITLE, "${label}\n${view.said}".toString())
    }

    // Where the upper left corner of the open image lies on the slide: QuPath crops some slides to their bounds.
    static List cornerOf(Map slide, image) {
        def size = [image.getWidth(), image.getHeight()]
        def bounds = slide.bounds.collect { Math.round(it) as long }
        if (size == [slide.w as int, slide.h as int])
            return [0, 0]
        if (size == [bounds[2] as int, bounds[3] as int])
            return [bounds[0], bounds[1]]
        String cropped = bounds[2..3] == [slide.w as long, slide.h as long] ? '' :
            " (or ${bounds[2]} × ${bounds[3]}, cropped to what was scanned)"
        throw new Told("This map is of ${slide.name}, which has ${slide.w as long} × ${slide.h as long} pixels" +
            "${cropped}. The open image has ${size[0]} × ${size[1]}. Open the slide, and run the script again.")
    }

    // Slides of one scanner may well have the same size.
    static boolean isNamed(String name, image) {
        def names = image.getURIs().collect { it.path?.tokenize('/')?.last() }.findAll()
        return names.isEmpty() || names.any { plain(it) == plain(name) }
    }

    static String plain(String name) { Normalizer.normalize(name, Normalizer.Form.NFC) }

    static String otherName(String name, image) {
        String open = image.getURIs().collect { it.path?.tokenize('/')?.last() }.findAll().join(', ')
        return "This map is of ${name}. The open image is ${open}, which has the same size. Show the map over it?"
    }

    static String chosen(List labels, boolean isShown) {
        if (labels.size() == 1 && !isShown)
            return labels[0]
        return Dialogs.showChoiceDialog(TITLE, 'Which map shall lie over the slide?', labels + [NONE], labels[0])
    }

    // QuPath tells a script its own file in a variable whose name differs between versions.
    static List folders(Collection variables, String before) {
        def scripts = variables.findAll { it instanceof CharSequence || it instanceof File }
            .collect { new File(it.toString()) }.findAll { it.name.endsWith('.groovy') && it.isFile() }
        return (scripts.collect { it.absoluteFile.parentFile } + [new File(before)]).unique()
    }

    static File find(String name, List folders) {
        File file = folders.collect { new File(it, name) }.find { it.isFile() }
        if (file == null)
            throw new Told("The map ${name} is not found. It was looked for in ${folders.join(' and in ')}. " +
                'Keep the script in the folder of the map, and drag it onto QuPath from there.')
        return file
    }

    static Map load(File file, Map view, Map colours, List corner) {
        def server = ImageServers.buildServer(file.toURI())
        try {
            if (server.getWidth() != view.w as int || server.getHeight() != view.h as int)
                throw new Told("${file} is not the map that this script was written with. Run the slide again.")
            double downsample = 1
            while (view.w / downsample * view.h / downsample * view.channels > MOST_VALUES)
                downsample *= 2
            def values = server.readRegion(RegionRequest.createInstance(server, downsample)).getRaster()
            int[] table = colours[view.signed ? 'signed' : 'magnitude'].collect { Integer.parseUnsignedInt(it, 16) }
            def picture = colouredBy(values, view.channel as int, view.signed, view.low as double, view.high as double, table)
            return [(region(view, corner, values.width * downsample, values.height * downsample)): picture]
        } finally {
            server.close()
        }
    }

    // The pixels of the open image that some cells cover, to the nearest whole pixel.
    static ImageRegion region(Map view, List corner, double cellsX, double cellsY) {
        long x = Math.round((double) (view.x0 - corner[0])), y = Math.round((double) (view.y0 - corner[1]))
        long right = Math.round((double) (view.x0 - corner[0] + cellsX * view.fx))
        long bottom = Math.round((double) (view.y0 - corner[1] + cellsY * view.fy))
        return ImageRegion.createInstance(x as int, y as int, (right - x) as int, (bottom - y) as int, 0, 0)
    }

    // Values from low to high take the colours of the table, whose opacity grows; 0 was not computed.
    @CompileStatic
    static BufferedImage colouredBy(Raster values, int band, boolean signed, double low, double high, int[] table) {
        int w = values.getWidth(), h = values.getHeight()
        BufferedImage picture = new BufferedImage(w, h, BufferedImage.TYPE_INT_ARGB)
        float[] row = new float[w]
        int[] colours = new int[w]
        double steps = (table.length - 1) / (high - low)
        for (int y = 0; y < h; y++) {
            values.getSamples(values.getMinX(), values.getMinY() + y, w, 1, band, row)
            for (int x = 0; x < w; x++) {
                double value = signed ? row[x] : Math.abs(row[x])
                double step = Math.rint((Math.min(Math.max(value, low), high) - low) * steps)
                colours[x] = value == 0d || Double.isNaN(value) ? 0 : table[(int) step]
            }
            picture.setRGB(0, y, w, 1, colours, 0, w)
        }
        return picture
    }
}

try {
    SaliencyOverlay.run(binding.variables.values())
} catch (Told told) {
    Dialogs.showErrorMessage(SaliencyOverlay.TITLE, told.message)
} catch (IOException | RuntimeException error) {
    Dialogs.showErrorMessage(SaliencyOverlay.TITLE, "The map cannot be shown: ${error}".toString())
    throw error
}
