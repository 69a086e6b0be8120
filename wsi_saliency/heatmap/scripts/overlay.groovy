// Lays a saliency map over its slide in QuPath 0.5, 0.6 or 0.7. Written by wsi-saliency.
//
// Open the slide, drag this file onto QuPath's window, and choose Run > Run. Run it again for another map,
// or to take the map away.

import groovy.transform.CompileStatic
import java.awt.image.BufferedImage
import java.awt.image.Raster
import javafx.application.Platform
import qupath.fx.dialogs.Dialogs
import qupath.lib.gui.scripting.QPEx
import qupath.lib.gui.viewer.overlays.BufferedImageOverlay
import qupath.lib.images.servers.ImageServers
import qupath.lib.regions.ImageRegion
import qupath.lib.regions.RegionRequest

// SLIDES

class SaliencyOverlay {
    static final String NONE = 'none: take the map away'
    static final long MOST_VALUES = 64_000_000L  // what is loaded at most; 256 MB

    static void run(Collection variables) {
        if (QPEx.getQuPath() == null)
            throw new Told('There is no window to show the map in. Start QuPath, open the slide, and run the script there.')
        def viewer = QPEx.getCurrentViewer()
        def image = viewer?.getServer()
        Map facts = Slides.facts()
        if (image == null)
            throw new Told("No image is open. Open ${facts.results*.slide*.name.take(3).join(', or ')}, and run the script again.")
        Map choices = choices(matching(facts.results, image))
        String label = choices ? chosen(choices.keySet() as List, viewer.getCustomPixelLayerOverlay() != null) : null
        if (label == null)
            return
        if (label == NONE) {
            Platform.runLater { viewer.setCustomPixelLayerOverlay(null) }
            return
        }
        def (Map result, Map view) = choices[label]
        File file = find(view.file, folders(variables, result.folder))
        def drawn = load(file, view, facts.colours, Slides.cornerOf(result.slide, image), Slides.turnsOf(image), Slides.uprightSize(image))
        Platform.runLater { show(viewer, image, drawn) }
        Dialogs.showInfoNotification(Slides.TITLE, "${label}\n${view.said}".toString())
    }

    // QuPath draws such an overlay only while pixel classification is shown.
    static void show(viewer, image, Map drawn) {
        if (!viewer.getServer().is(image))
            return  // another one was opened while the map was being loaded
        viewer.setCustomPixelLayerOverlay(new BufferedImageOverlay(viewer, drawn))
        viewer.getOverlayOptions().setShowPixelClassification(true)
    }

    // The results of the slide that is open; none if the user does not want one of a slide with another name.
    static List matching(List results, image) {
        def named = results.findAll { Slides.isNamed(it.slide, image) }
        def there = named.findAll { Slides.isThere(it.slide, image) }
        if (named.isEmpty() && results.size() > 1)
            throw new Told("${Slides.namesOf(image).join(', ')} is none of the ${results.size()} slides that there are maps of.")
        def fitting = (there ?: named ?: results).findAll { Slides.cornerOf(it.slide, image) != null }
        if (fitting.isEmpty())
            throw new Told(Slides.otherSize((there ?: named ?: results)[0].slide, image))
        if (named.isEmpty() && !Dialogs.showConfirmDialog(Slides.TITLE, otherName(fitting[0].slide, image)))
            return []
        return fitting
    }

    static String otherName(Map slide, image) {
        return "This map is of ${slide.name}. The open image is ${Slides.namesOf(image).join(', ')}, " +
            'which has the same size. Show the map over it?'
    }

    // Results and views by what the user reads.
    static Map choices(List results) {
        return results.collectEntries { result ->
            String folder = results.size() > 1 ? " · ${result.folder}" : ''
            result.views.collectEntries { view -> [("${view.label}${folder}".toString()): [result, view]] }
        }
    }

    static String chosen(List labels, boolean isShown) {
        if (labels.size() == 1 && !isShown)
            return labels[0]
        return Dialogs.showChoiceDialog(Slides.TITLE, 'Which map shall lie over the slide?', labels + [NONE], labels[0])
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

    static Map load(File file, Map view, Map colours, List corner, int turns, List size) {
        def server = ImageServers.buildServer(file.toURI())
        try {
            if (server.getWidth() != view.w as int || server.getHeight() != view.h as int)
                throw new Told("${file} is not the map that this script was written with. Run the slide again.")
            double downsample = 1
            while (view.w / downsample * view.h / downsample * view.channels > MOST_VALUES)
                downsample *= 2
            def values = server.readRegion(RegionRequest.createInstance(server, downsample)).getRaster()
            int[] table = colours[view.signed ? 'signed' : 'magnitude'].collect { Integer.parseUnsignedInt(it, 16) }
            def picture = coloured(values, view.channel as int, view.signed, view.low as double, view.high as double, table)
            def upright = box(view, corner, values.width * downsample, values.height * downsample)
            return [(region(turned(upright, turns, size))): turned(picture, turns)]
        } finally {
            server.close()
        }
    }

    // The pixels of the upright image that some cells cover, to the nearest whole pixel: x, y, width and height.
    static List box(Map view, List corner, double cellsX, double cellsY) {
        long x = Math.round((double) (view.x0 - corner[0])), y = Math.round((double) (view.y0 - corner[1]))
        long right = Math.round((double) (view.x0 - corner[0] + cellsX * view.fx))
        long bottom = Math.round((double) (view.y0 - corner[1] + cellsY * view.fy))
        return [x, y, right - x, bottom - y]
    }

    static ImageRegion region(List box) {
        def (int x, int y, int w, int h) = box.collect { it as int }
        return ImageRegion.createInstance(x, y, w, h, 0, 0)
    }

    // Where a box lies when an image of some width and height has been turned by quarter turns, clockwise.
    static List turned(List box, int turns, List size) {
        def (x, y, w, h) = box
        return turns == 0 ? box : turned([size[1] - y - h, x, h, w], turns - 1, size.reverse())
    }

    @CompileStatic
    static BufferedImage turned(BufferedImage picture, int turns) {
        if (turns == 0)
            return picture
        int w = picture.getWidth(), h = picture.getHeight()
        BufferedImage quarter = new BufferedImage(h, w, BufferedImage.TYPE_INT_ARGB)
        int[] row = new int[w]
        for (int y = 0; y < h; y++) {
            picture.getRGB(0, y, w, 1, row, 0, w)
            quarter.setRGB(h - 1 - y, 0, 1, w, row, 0, 1)
        }
        return turned(quarter, turns - 1)
    }

    // Values from low to high take the colours of the table, whose opacity grows; 0 was not computed.
    @CompileStatic
    static BufferedImage coloured(Raster values, int band, boolean signed, double low, double high, int[] table) {
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
    Dialogs.showErrorMessage(Slides.TITLE, told.message)
} catch (Exception error) {
    Dialogs.showErrorMessage(Slides.TITLE, "The map cannot be shown: ${error}".toString())
    throw error
}
