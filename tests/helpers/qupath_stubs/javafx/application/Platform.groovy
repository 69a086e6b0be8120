package javafx.application

import stage.Scene

class Platform {
    static boolean running = false

    static void runLater(Runnable task) {
        assert Scene.now.facts.window: 'there is no window, so its thread does not run'
        running = true
        try {
            task.run()
        } finally {
            running = false
        }
    }
}
