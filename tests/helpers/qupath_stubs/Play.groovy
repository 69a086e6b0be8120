// Plays scenes: runs a script as QuPath would, with stubs in place of QuPath's classes that note the calls.
import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import javax.imageio.ImageIO
import stage.Scene

def notes = new JsonSlurper().parse(new File(args[0])).collect { facts ->
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
new File(args[1]).text = JsonOutput.toJson(notes)
