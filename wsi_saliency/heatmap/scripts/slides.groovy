class Told extends Exception {
    Told(String message) { super(message) }
}

// Which slides a script was written for, and whether an open image is one of them.
class Slides {
    static final String TITLE = 'Saliency map'

    // The facts are JSON, packed so that no name in them can be taken for a part of this script.
    static Map facts() {
        String json = new String([
            'FACTS',
        ].join('').decodeBase64(), 'UTF-8')
        return new com.google.gson.Gson().fromJson(json, Map)
    }

    // By how many quarter turns, clockwise, QuPath shows an image turned: it asks when images come into a project.
    static int turnsOf(image) { image.metaClass.respondsTo(image, 'getRotation') ? image.getRotation().ordinal() : 0 }

    // Width and height of an image before it is turned.
    static List uprightSize(image) {
        def size = [image.getWidth() as long, image.getHeight() as long]
        return turnsOf(image) % 2 ? size.reverse() : size
    }

    // Where the upper left corner of an image, before it is turned, lies on the slide: QuPath crops some slides to their
    // bounds. Null for an image of another size.
    static List cornerOf(Map slide, image) {
        def size = uprightSize(image)
        def bounds = slide.bounds.collect { Math.round(it as double) }
        if (size == [slide.w as long, slide.h as long])
            return [0L, 0L]
        return size == bounds[2..3] ? bounds[0..1] : null
    }

    static String otherSize(Map slide, image) {
        def whole = [slide.w as long, slide.h as long], seen = slide.bounds[2..3].collect { Math.round(it as double) }
        String cropped = seen == whole ? '' : " (or ${seen.join(' × ')}, cropped to what was scanned)"
        return "This map is of ${slide.name}, which has ${whole.join(' × ')} pixels${cropped}. " +
            "The open image has ${image.getWidth()} × ${image.getHeight()}. Open the slide, and run the script again."
    }

    // Slides of one scanner may well have the same size, so the name counts; unless an image has no file.
    static boolean isNamed(Map slide, image) {
        def names = namesOf(image)
        return names.isEmpty() || names.any { plain(it) == plain(slide.name) }
    }

    static boolean isThere(Map slide, image) {
        return image.getURIs().any { it.scheme == 'file' && it.path && new File(it.path) == new File(slide.path) }
    }

    static List namesOf(image) { image.getURIs().collect { it.path?.tokenize('/')?.last() }.findAll() }

    // Some file systems take accents apart.
    static String plain(String name) { java.text.Normalizer.normalize(name, java.text.Normalizer.Form.NFC) }
}
