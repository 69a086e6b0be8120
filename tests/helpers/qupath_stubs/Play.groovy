// Plays scenes: runs a script as QuPath would, with stubs in place of QuPath's classes that note the calls.
// Each line of the standard input names a file of scenes and the file in which to tell of them; the mark in
// the first argument, at the end of a line, says that they are played.
import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import javax.imageio.ImageIO
import stage.Scene

System.in.eachLine('UTF-8') { line ->
    def (asked, told) = new JsonSlurper().parseText(line)
    Scene.project = null
    def notes = new JsonSlurper().parse(new File(asked)).collect { facts ->
        Scene.now = new Scene(facts)
        def failure = null
        try {
            new GroovyShell(getClass().classLoader, new Binding(facts.variables)).run(new File(facts.script).text, 'Script1.groovy', [])
        } catch (Throwable error) {
            failure = error.toString()
        }
        if (facts.picture)
            ImageIO.write(Scene.now.painted(), 'png', new File(facts.picture))
        [calls: Scene.now.calls, failure: failure]
    }
    new File(told).text = JsonOutput.toJson(notes)
    println(args[0])
}
