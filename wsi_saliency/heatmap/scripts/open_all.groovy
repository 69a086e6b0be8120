// Puts slides with saliency maps into a QuPath project. Written by wsi-saliency.
//
// Drag this file onto QuPath's window, and choose Run > Run. The project that is open gets the slides; without one,
// the project in the folder of this script is opened, or made. Slides and objects that are there already stay.

import java.awt.image.BufferedImage
import javafx.application.Platform
import qupath.fx.dialogs.Dialogs
import qupath.lib.gui.scripting.QPEx
import qupath.lib.images.ImageData
import qupath.lib.images.servers.ImageServerProvider
import qupath.lib.io.PathIO
import qupath.lib.projects.ProjectIO
import qupath.lib.projects.Projects

// SLIDES

class SaliencyProject {
    static void run() {
        Map facts = Slides.facts()
        def project = QPEx.getProject() ?: opened(new File(facts.project))
        List problems = []
        facts.slides.each { Map slide ->
            try {
                add(project, slide)
            } catch (Exception error) {
                problems << (error instanceof Told ? error.message : "${slide.name}: ${error}".toString())
            }
        }
        project.syncChanges()
        def window = QPEx.getQuPath()
        if (window != null)  // QuPath can run a script without one
            Platform.runLater {
                window.setProject(project)
                window.refreshProject()
            }
        if (problems)
            Dialogs.showErrorMessage(Slides.TITLE, problems.join('\n'))
        Dialogs.showInfoNotification(Slides.TITLE, "${facts.slides.size() - problems.size()} of ${facts.slides.size()} " +
            'slides are in the project with all there is of them')
    }

    static opened(File folder) {
        File file = new File(folder, 'project.qpproj')
        return file.isFile() ? ProjectIO.loadProject(file, BufferedImage) : Projects.createProject(folder, BufferedImage)
    }

    static void add(project, Map slide) {
        File file = new File(slide.path)
        def entry = project.getImageList().find { Slides.isThere(slide, it) }
        if (entry == null) {
            if (!file.exists())
                throw new Told("${slide.path} is not there; put it back, or add the slide by hand and run this again.")
            def support = ImageServerProvider.getPreferredUriImageSupport(BufferedImage, file.toURI().toString())
            if (support == null || support.getBuilders().isEmpty())
                throw new Told("${slide.path} cannot be opened by this QuPath.")
            entry = project.addImage(support.getBuilders()[0])
            entry.setImageName(slide.name)
        }
        def imageData = entry.readImageData()
        try {
            if (imageData.getImageType() == null || imageData.getImageType() == ImageData.ImageType.UNSET)
                imageData.setImageType(ImageData.ImageType.BRIGHTFIELD_H_E)
            addObjects(imageData, slide)
            entry.saveImageData(imageData)
        } finally {
            imageData.getServer().close()
        }
    }

    // Positions in the files are those of the slide as QuPath usually shows it.
    static void addObjects(imageData, Map slide) {
        def image = imageData.getServer(), hierarchy = imageData.getHierarchy()
        if (Slides.cornerOf(slide, image) == null)
            throw new Told(Slides.otherSize(slide, image))
        if (Slides.turnsOf(image))
            throw new Told("${slide.name} is turned in this project, so tiles and hotspots were not added.")
        if (Slides.cornerOf(slide, image) != slide.bounds[0..1].collect { Math.round(it as double) })
            throw new Told("${slide.name}: this QuPath does not crop the slide, so tiles and hotspots were not added.")
        def there = hierarchy.getAllObjects(false)*.getID() as Set
        slide.objects.each { path ->
            def objects = PathIO.readObjects(new File(path).toPath()).findAll { !(it.getID() in there) }
            hierarchy.addObjects(objects)
        }
    }
}

try {
    SaliencyProject.run()
} catch (Exception error) {
    Dialogs.showErrorMessage(Slides.TITLE, "The slides cannot be put into a project: ${error}".toString())
    throw error
}
